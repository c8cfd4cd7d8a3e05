"""Two reports or more beside each other: a desktop and a Jetson, before a change and after it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iwp_export.accuracy.figures import Accuracy, AtKeep
from iwp_export.accuracy.scoring import compare
from iwp_export.errors import ReportError
from iwp_export.latency.figures import PHASES, SPANS, ratio_apart
from iwp_export.latency.verdict import TITLES
from iwp_export.reports.page import PARTS
from iwp_export.reports.report import Report, headline
from iwp_export.tables import table
from iwp_export.view import page as html
from iwp_export.view.axes import Axis
from iwp_export.view.charts import Line, lines
from iwp_export.view.distributions import Values, ecdf
from iwp_export.view.figures import Interval

MILLISECONDS = 1000


@dataclass(frozen=True)
class Named:
    """A report under the name that a comparison gives it."""

    name: str
    report: Report


def merged(reports: Sequence[Report]) -> Report | None:
    """One report of several about the same artefact that measured different things, such as accuracy and latency.

    The machine is the one of the latencies, if there are any; a warning names others. None if the reports are about
    different artefacts, or if two measured the same.
    """
    first = next((report for report in reports if report.latency is not None), reports[0])  # times need their machine
    measured = [part.field for report in reports for part in PARTS if getattr(report, part.field) is not None]
    same = {(report.artefact.digest, report.artefact.provider) for report in reports}
    if len(reports) < 2 or len(same) > 1 or len(set(measured)) < len(measured):
        return None
    sections: dict[str, Any] = {part.field: _first(reports, part.field) for part in PARTS}
    gates = tuple(itertools.chain(*(report.gates for report in reports)))
    found = itertools.chain(*(report.verdict[1:] for report in reports))  # the first of each is its own headline
    return replace(
        first,
        command="\n".join(report.command for report in reports),
        verdict=(headline(gates), *found),
        gates=gates,
        warnings=tuple(dict.fromkeys(itertools.chain(*(report.warnings for report in reports), _machines(reports)))),
        **sections,
    )


def _machines(reports: Sequence[Report]) -> list[str]:
    """Which part is from which machine, where there are several."""
    if len({device(report) for report in reports}) < 2:
        return []
    parts = [", ".join(part.field for part in PARTS if getattr(report, part.field) is not None) for report in reports]
    told = [f"{part} on {device(report)}" for part, report in zip(parts, reports, strict=True)]
    return [f"measured on different machines: {'; '.join(told)}"]


def device(report: Report) -> str:
    """What the machine is called: its board, its GPU and its processor, as far as they are known."""
    state = report.state
    return ", ".join(name for name in (state.board, state.gpu, state.cpu) if name) or "an unknown machine"


def _first(reports: Sequence[Report], field: str) -> object:
    return next((found for report in reports if (found := getattr(report, field)) is not None), None)


def named(reports: Sequence[Report], paths: Sequence[Path]) -> list[Named]:
    """Reports under their files' names, or under their paths where two files share a name.

    Raises:
        ReportError: there is one only, so nothing to compare.
    """
    if len(reports) < 2:
        raise ReportError(f"a comparison needs two reports or more, got {len(reports)}")
    names = [path.stem for path in paths]
    for longer in (lambda path: str(path.with_suffix("")), str):
        if len(set(names)) < len(names):
            names = [longer(path) for path in paths]
    return [Named(name, report) for name, report in zip(names, reports, strict=True)]


def differences(these: Sequence[Named]) -> list[str]:
    """How each report differs from the first, in sentences; first what makes them hard to compare."""
    first = these[0]
    found = [sentence for other in these[1:] for sentence in _unlike(first, other)]
    for other in these[1:]:
        found += [*_gates(first, other), *_accuracy(first, other), *_latency(first, other)]
    return found or ["No gate changed, and neither scores of the same questions nor latencies are in both."]


def _unlike(first: Named, other: Named) -> list[str]:
    """What differs beside what is being compared."""
    a, b = first.report, other.report
    pairs = [("model", a.artefact.model, b.artefact.model)]
    if a.accuracy and b.accuracy:
        pairs += [
            ("questions", a.accuracy.digest, b.accuracy.digest),
            ("score", a.accuracy.score, b.accuracy.score),
        ]
    if a.latency and b.latency:
        ours, theirs = vars(a.latency.workload), vars(b.latency.workload)
        pairs += [(name, ours[name], theirs[name]) for name in ours]
    names = [name.replace("_", " ") for name, x, y in pairs if x != y]
    return [f"{first.name} and {other.name} differ in {', '.join(names)}: compare with care."] if names else []


def _gates(first: Named, other: Named) -> list[str]:
    before, after = held(first.report), held(other.report)
    changed = [name for name in before.keys() & after.keys() if before[name] != after[name]]
    return [
        f"{name}: {'passed' if before[name] else 'failed'} in {first.name}, "
        f"{'passed' if after[name] else 'failed'} in {other.name}."
        for name in sorted(changed)
    ]


def held(report: Report) -> dict[str, bool]:
    """Gates by name, and whether they hold: one that is there for several keep ratios, only if it does for all."""
    found: dict[str, bool] = {}
    for gate in report.gates:
        found[gate.name] = gate.passed and found.get(gate.name, True)
    return found


def _accuracy(first: Named, other: Named) -> list[str]:
    a, b = first.report.accuracy, other.report.accuracy
    if a is None or b is None:
        return []
    sentences = []
    for here, there in shared_keeps(a, b):
        change = score_change(a, b, here, there)
        if change is not None:
            text = f"{100 * change.mean:+.1f} points ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
            sentences.append(f"At keep {here.keep:g} {other.name} scores {text} against {first.name}.")
    return sentences


def shared_keeps(a: Accuracy, b: Accuracy) -> list[tuple[AtKeep, AtKeep]]:
    """What both measured, by keep ratio."""
    others = {found.keep: found for found in b.at}
    return [(found, others[found.keep]) for found in a.at if found.keep in others]


def score_change(a: Accuracy, b: Accuracy, here: AtKeep, there: AtKeep) -> Interval | None:
    """Score of `there` less that of `here`, with the interval of differences of an artefact's own budgets.

    None without scores of the same questions by the same score.
    """
    if a.digest != b.digest or a.score != b.score or not here.scores or len(here.scores) != len(there.scores):
        return None
    return compare(here.scores, there.scores)[0]


def _latency(first: Named, other: Named) -> list[str]:
    a, b = first.report.latency, other.report.latency
    if a is None or b is None:
        return []
    ratio = ratio_apart(a.pruned.times["end_to_end"], b.pruned.times["end_to_end"])
    text = f"{ratio.mean:.2f} times as fast as {first.name} end to end ({ratio.low:.2f} to {ratio.high:.2f}, pruned)"
    ours, theirs = (each.ratios["end_to_end"].mean for each in (a, b))
    gains = f"pruning makes answers {theirs:.2f} times as fast on {other.name}, {ours:.2f} times on {first.name}"
    return [f"{other.name} is {text}; {gains}."]


def describe(these: Sequence[Named]) -> str:
    """For the terminal."""
    return "\n".join([*differences(these), "", table(overview(these))])


def overview(these: Sequence[Named]) -> list[list[str]]:
    """What is compared, a column for each report under a row of names."""
    rows: list[tuple[str, Callable[[Report], object]]] = [
        ("result", lambda report: "passed" if report.passed else "FAILED"),
        ("artefact", lambda report: f"{report.artefact.name} ({report.artefact.digest[:12]})"),
        ("model", lambda report: report.artefact.model),
        ("type", lambda report: report.artefact.dtype),
        ("runs on", lambda report: report.artefact.provider),
        ("device", device),
        ("pruning layer", lambda report: report.artefact.pruning.layer),
        ("keep", lambda report: report.artefact.pruning.keep),
        ("settings from", lambda report: report.artefact.pruning_source),
        ("made", lambda report: report.made),
    ]
    return [
        ["", *(each.name for each in these)],
        *([name, *(str(of(each.report)) for each in these)] for name, of in rows),
    ]


def make_page(these: Sequence[Named]) -> html.Page:
    """The page.

    Raises:
        BackendError: matplotlib is missing.
    """
    head, *rows = overview(these)
    sections = [html.Section("What is compared", [html.Table(("", *head[1:]), rows, "The reports")])]
    scored = [each for each in these if each.report.accuracy is not None]
    timed = [each for each in these if each.report.latency is not None]
    if len(scored) > 1:
        sections.append(html.Section("Accuracy against budget", _accuracy_blocks(scored)))
    if len(timed) > 1:
        sections.append(html.Section("Latency", _latency_blocks(timed)))
    names = " · ".join(each.name for each in these)
    return html.Page("Comparison of reports", names, (html.Verdict(differences(these)), *sections, _gate_table(these)))


def _accuracy_blocks(scored: Sequence[Named]) -> list[html.Block]:
    series = []
    for each in scored:
        assert each.report.accuracy is not None
        at = sorted(each.report.accuracy.at, key=lambda found: found.keep)
        shown = [found.score or found.agreement for found in at]
        keeps = tuple(found.keep for found in at)
        means, lows, highs = (tuple(getattr(one, end) for one in shown) for end in ("mean", "low", "high"))
        series.append(Line(each.name, keeps, means, lows, highs))
    chart = lines(
        "accuracy",
        "Score of each report by keep ratio",
        series,
        Axis("share of the visual tokens that stay"),
        Axis("score", "percent", 0.0, 1.02),
    )
    return [
        html.Chart(chart, "Score with its 95 % interval; agreement with the unpruned model where there are no answers")
    ]


def _latency_blocks(timed: Sequence[Named]) -> list[html.Block]:
    series, columns = [], [html.Column("Phase")]
    rows: list[list[object]] = [[TITLES.get(phase, phase)] for phase in (*PHASES, *SPANS)]
    for each in timed:
        latency = each.report.latency
        assert latency is not None
        series.append(
            Values(each.name, tuple(MILLISECONDS * seconds for seconds in latency.pruned.times["end_to_end"]))
        )
        columns += [html.Column(f"{each.name}, pruned", True), html.Column(f"{each.name}, unpruned", True)]
        for row, phase in zip(rows, (*PHASES, *SPANS), strict=True):
            row += [f"{MILLISECONDS * side.phases[phase].p50:.1f}" for side in (latency.pruned, latency.unpruned)]
    chart = ecdf(
        "end-to-end", "Share of pruned answers that are done by a time", series, Axis("ms, end to end, pruned")
    )
    return [
        html.Chart(chart, "Share of the pruned answers that are done by a time"),
        html.Table(columns, rows, "Median of each phase, in ms"),
    ]


def _gate_table(these: Sequence[Named]) -> html.Section:
    words = [{name: "passed" if holds else "FAILED" for name, holds in held(each.report).items()} for each in these]
    names = dict.fromkeys(itertools.chain(*words))
    rows = [[name, *(of.get(name, "not set") for of in words)] for name in names]
    return html.Section("Gates", [html.Table(("Gate", *(each.name for each in these)), rows, "Gates of each report")])
