"""Reports beside each other: a desktop and a Jetson, before a change and after it, one export and another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iwp_export.accuracy import verdict as accuracy_verdict
from iwp_export.accuracy.figures import Accuracy
from iwp_export.accuracy.scoring import compare
from iwp_export.latency.figures import PHASES, SPANS
from iwp_export.reports.report import Report, headline
from iwp_export.view.figures import milliseconds
from iwp_export.view.view import Axis, Chart, Column, Table, View, distribution

TITLE = "Comparison of reports"


@dataclass(frozen=True)
class Named:
    """A report under the name that a comparison gives it."""

    name: str
    report: Report


def merged(reports: Sequence[Report]) -> Report | None:
    """One report of several about the same artefact that measured different things, such as accuracy and latency.

    The machine is the one of the latencies, if there are any; a warning names others. A single report is itself. None
    if the reports are about different artefacts, or if two measured the same.
    """
    if len(reports) == 1:
        return reports[0]
    measured = [name for report in reports for name in report.measured]
    same = {(report.artefact.digest, report.artefact.provider) for report in reports}
    if len(same) > 1 or len(set(measured)) < len(measured):
        return None
    first = next((report for report in reports if report.latency is not None), reports[0])  # times need their machine
    gates = tuple(itertools.chain(*(report.gates for report in reports)))
    found = itertools.chain(*(report.verdict[1:] for report in reports))  # the first of each is its own headline
    doubts = [*itertools.chain(*(report.warnings for report in reports)), *_machines(reports)]
    return replace(
        first,
        command="\n".join(report.command for report in reports),
        verdict=(headline(gates), *found),
        gates=gates,
        warnings=tuple(dict.fromkeys(doubts)),
        **{name: getattr(report, name) for report in reports for name in report.measured},
    )


def _machines(reports: Sequence[Report]) -> list[str]:
    """Which part is from which machine, where there are several."""
    if len({report.device for report in reports}) < 2:
        return []
    told = [f"{', '.join(report.measured)} on {report.device}" for report in reports]
    return [f"measured on different machines: {'; '.join(told)}"]


def named(reports: Sequence[Report], paths: Sequence[Path]) -> list[Named]:
    """Reports under the names of their files or artefacts, or under their paths where two share a name."""
    names = [path.absolute().name.removesuffix(".json") for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return [Named(name, report) for name, report in zip(names, reports, strict=True)]


def views(these: Sequence[Named]) -> list[View]:
    """How the reports differ, what they are of, and their figures beside each other."""
    timed = [each for each in these if each.report.latency is not None]
    return [
        View(TITLE, differences(these)),
        View("What is compared", tables=[_overview(these)]),
        *_accuracies(these),
        *([_latencies(timed)] if len(timed) > 1 else []),
    ]


def differences(these: Sequence[Named]) -> list[str]:
    """How each report differs from the first, in sentences; first what makes them hard to compare."""
    first, *others = these
    found = list(filter(None, (_unlike(first, other) for other in others)))
    for other in others:
        found += [*_gates(first, other), *_accuracy(first, other), *_latency(first, other)]
    return found or ["No gate changed, and neither scores of the same questions nor latencies are in both."]


def _unlike(first: Named, other: Named) -> str:
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
    return f"{first.name} and {other.name} differ in {', '.join(names)}: compare with care." if names else ""


def _gates(first: Named, other: Named) -> list[str]:
    before, after = held(first.report), held(other.report)
    return [
        f"{name}: {_word(before[name])} in {first.name}, {_word(after[name])} in {other.name}."
        for name in sorted(before.keys() & after.keys())
        if before[name] != after[name]
    ]


def held(report: Report) -> dict[str, bool]:
    """Gates by name, and whether they hold: one that is there for several keep ratios, only if it does for all."""
    found: dict[str, bool] = {}
    for gate in report.gates:
        found[gate.name] = gate.passed and found.get(gate.name, True)
    return found


def _word(holds: bool | None) -> str:
    return {True: "passed", False: "FAILED", None: "no gate"}[holds]


def _accuracy(first: Named, other: Named) -> list[str]:
    """By keep ratio that both have; none without scores of the same questions."""
    a, b = first.report.accuracy, other.report.accuracy
    if a is None or b is None or (a.digest, a.score) != (b.digest, b.score) or not a.score:
        return []
    sentences, theirs = [], {found.keep: found.scores for found in b.at}
    for found in a.at:
        if found.keep in theirs:
            change, _ = compare(found.scores, theirs[found.keep])
            points = f"{100 * change.mean:+.1f} points ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
            sentences.append(f"At keep {found.keep:g} {other.name} scores {points} against {first.name}.")
    return sentences


def _latency(first: Named, other: Named) -> list[str]:
    a, b = first.report.latency, other.report.latency
    if a is None or b is None:
        return []
    ratio = a.pruned.phases["end_to_end"].p50 / b.pruned.phases["end_to_end"].p50
    ours, theirs = (each.ratios["end_to_end"].mean for each in (a, b))
    return [
        f"{other.name} is {ratio:.2f} times as fast as {first.name} end to end (medians, pruned); pruning makes "
        f"answers {theirs:.2f} times as fast on {other.name}, {ours:.2f} times on {first.name}."
    ]


def _overview(these: Sequence[Named]) -> Table:
    """What each report is of, its result, and gate by gate."""
    facts, gates = [dict(each.report.facts()) for each in these], [held(each.report) for each in these]
    rows: list[list[object]] = [[name, *(each[name] for each in facts)] for name in facts[0]]
    rows.append(["result", *(_word(each.report.passed if each.report.gates else None) for each in these)])
    rows += [[name, *(_word(each.get(name)) for each in gates)] for name in dict.fromkeys(itertools.chain(*gates))]
    return Table(["", *(each.name for each in these)], rows)


def _accuracies(these: Sequence[Named]) -> list[View]:
    """A table for each set of questions that two reports or more have in common."""
    groups: dict[object, list[tuple[str, Accuracy]]] = {}
    for each in these:
        if found := each.report.accuracy:
            groups.setdefault((found.digest, found.score), []).append((each.name, found))
    return [accuracy_verdict.compare(group) for group in groups.values() if len(group) > 1]


def _latencies(timed: Sequence[Named]) -> View:
    columns: list[Column | str] = ["phase"]
    rows: list[list[object]] = [[phase.replace("_", " ")] for phase in (*PHASES, *SPANS)]
    series = []
    for each in timed:
        latency = each.report.latency
        assert latency is not None
        series.append(distribution(each.name, [1000 * seconds for seconds in latency.pruned.times["end_to_end"]]))
        columns += [Column(f"{each.name}, {side}", number=True) for side in ("pruned", "unpruned")]
        for row, phase in zip(rows, (*PHASES, *SPANS), strict=True):
            row += [milliseconds(side.phases[phase].p50) for side in (latency.pruned, latency.unpruned)]
    share, title = Axis("share of runs", "percent", 0.0, 1.0), "Share of pruned answers that are done by a time"
    chart = Chart("lines", title, title, series, Axis("end to end, pruned, ms"), share)
    return View("Latency", charts=[chart], tables=[Table(columns, rows, "Median of each phase")])
