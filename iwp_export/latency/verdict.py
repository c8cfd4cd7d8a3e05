"""A bench in words: its gates, what makes its figures unreliable, and its view."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence

from iwp_export.latency.figures import PHASES, SIDES, SPANS, Dropped, Latency, Spread
from iwp_export.settings import RUNS_FOR_P99, BenchSettings
from iwp_export.view.figures import Gate, Interval, milliseconds, percent
from iwp_export.view.terminal import human_bytes
from iwp_export.view.view import Axis, Chart, Column, Table, View, distribution

TITLES = {"first_token": "time to first token", "end_to_end": "end to end", "step": "decode step"}
SHORTFALL = 0.9
"""Below this part of the promise a prefill has missed it."""
BUSY = 0.5
"""Load average a processor from which other work takes turns with the bench."""
DRIFT = 0.1
"""Change of the median, from the first third of the runs to the last, that is more than noise."""
HELPS = {
    "decode": "shorter answers or smaller weights would help more",
    "vision": "pruning does not touch the vision tower",
    "preprocess": "pruning does not touch the host's work on images",
    "rest": "that is the host's work between the phases",
}
ONE_PROCESS = (
    "ratios are unpruned over pruned: the median of the pairs, with its 95 % interval in this process; what differs "
    "from one start to the next is not in it, --repeat 5 measures that"
)
PROCESSES = (
    "ratios are unpruned over pruned: the mean of {} processes, with its 95 % interval; memory, energy and decode "
    "steps are of the process in the middle"
)
HOW = "one request at a time; each computes its image's features anew, and a phase ends when its results are there"
NO_P99 = f"* the slowest run: a p99 means nothing of fewer than {RUNS_FOR_P99} runs, and there are {{}}"


def gates(latency: Latency, settings: BenchSettings) -> list[Gate]:
    """Tokens are dropped, always; and the limits that the settings have, of the pruned runs."""
    found = [_as_expected(side) for side in latency.dropped]
    held = {side.side: sum(side.found) for side in latency.dropped}
    if held["pruned"] >= held["unpruned"] and found[0].passed:
        where = "the pruned caches are as long as the unpruned ones"
        remedy = "choose a smaller keep ratio, or images with more visual tokens"
        found[0] = Gate(found[0].name, False, found[0].measured, "fewer than unpruned", where, remedy)
    if settings.fail_if_slower is not None:
        ratio = latency.ratios[settings.fail_if_slower.replace("-", "_")]
        name, faster = f"faster-{settings.fail_if_slower}", ratio.low > 1
        remedy = "" if faster else "prune at an earlier layer, keep less, or measure more pairs on a quiet machine"
        found.append(Gate(name, faster, _ratio(ratio), "lower end above 1", remedy=remedy))
    p90, p99 = latency.pruned.phases["first_token"].p90, latency.pruned.phases["end_to_end"].p99
    for name, what, seconds, limit in (
        ("max-ttft", "p90 of the time to first token", p90, settings.max_ttft_ms),
        ("max-p99", "p99 end to end", p99, settings.max_p99_ms),
    ):
        if limit is not None and seconds is None:
            remedy = f"measure {RUNS_FOR_P99} pairs or more"
            found.append(Gate(name, False, f"{what}: too few runs", f"{limit:g} ms", remedy=remedy))
        elif limit is not None and seconds is not None:
            measured = f"{what} {milliseconds(seconds)}"
            found.append(Gate(name, 1000 * seconds <= limit, measured, f"{limit:g} ms"))
    return found


def _as_expected(side: Dropped) -> Gate:
    """Of the unpruned side too: a cache that lost a row there would flatter the ratio's other half."""
    where = side.flaw
    if len(side.found) != len(side.expected):
        where = f"{len(side.found)} layers, not {len(side.expected)}"
    elif side.found != side.expected:
        layer = next(i for i, length in enumerate(side.found) if length != side.expected[i])
        where = f"layer {layer}: {side.found[layer]}, not {side.expected[layer]}"
    name = "tokens-dropped" if side.side == "pruned" else "tokens-kept"
    remedy = "" if side.holds else "build or export the artefact again, and validate it"
    return Gate(name, side.holds, layers_of(side.found), layers_of(side.expected), where, remedy)


def layers_of(lengths: Sequence[int]) -> str:
    """Cache lengths, layers of the same length together: `layers 0 to 3 hold 97, 4 to 7 hold 41`."""
    parts, first = [], 0
    for length, group in itertools.groupby(lengths):
        last = first + len(list(group)) - 1
        parts.append(f"{first} to {last} hold {length}" if last > first else f"{first} holds {length}")
        first = last + 1
    return f"layers {', '.join(parts)}"


def warnings(latency: Latency) -> list[str]:
    """What makes the figures unreliable."""
    said = []
    for side in SIDES if latency.processes == 1 else ():
        values = latency.side(side).times["end_to_end"]
        third = len(values) // 3
        change = statistics.median(values[-third:]) / statistics.median(values[:third]) - 1
        if abs(change) > DRIFT:
            said.append(
                f"{side} requests took {percent(abs(change))} {'more' if change > 0 else 'less'} at the end than at "
                "first: warm up longer, or keep the machine's clocks and its other work steady"
            )
    if latency.load > BUSY:
        load = f"load average {latency.load:g} a processor"
        said.append(f"the machine was busy before the bench ({load}): its times and ratios are a busy machine's")
    return said


def view(latency: Latency) -> View:
    """What was found, asked and measured."""
    charts = [_distribution(latency, name) for name in ("end_to_end", "prefill")]
    return View("Latency", _sentences(latency), _facts(latency), charts, [_phases(latency)], notes=_notes(latency))


def _sentences(latency: Latency) -> list[str]:
    """The first is the headline."""
    prefill, whole = latency.ratios["prefill"], latency.ratios["end_to_end"]
    said = f"prefill {_ratio(prefill)} of {latency.promised:.2f} promised; end to end {_ratio(whole)}"
    means = {name: latency.pruned.phases[name].mean for name in PHASES}
    name = max(means, key=lambda name: means[name])
    share = percent(means[name] / latency.pruned.phases["end_to_end"].mean)
    because = f"{name} takes {share}: {HELPS[name]}" if name in HELPS else ""
    if whole.low <= 1:
        shown = "pruning makes it slower" if whole.high < 1 else "no speed-up is shown"
        said = f"{said}: {'; '.join(filter(None, (shown, because)))}"
    elif because and whole.mean < prefill.mean:
        said = f"{said} because {because}"
    else:
        said = f"{said}; time to first token {_ratio(latency.ratios['first_token'])}"
    found = [said]
    if prefill.high < SHORTFALL * latency.promised:
        missed = "a call's fixed cost is not counted, nor is the choice of tokens"
        found.append(f"the prefill is slower than the operation count predicts: {missed}")
    dropped = gates(latency, BenchSettings())[0]
    said = "tokens were dropped" if dropped.passed else "TOKENS WERE NOT DROPPED as they should be"
    where = "" if dropped.passed else f"; {dropped.where}"
    return [*found, f"{said}: {dropped.measured} (read back from the backend's buffers){where}"]


def _facts(latency: Latency) -> list[tuple[str, object]]:
    work, sides = latency.workload, [latency.side(side) for side in SIDES]
    processes = f" in {latency.processes} processes" if latency.processes > 1 else ""
    facts: list[tuple[str, object]] = [
        ("asked", f"{work.source}; {work.new_tokens} new tokens"),
        ("prompt", f"{work.visual_tokens:.0f} visual and {work.text_tokens:.0f} text tokens"),
        ("pruning", f"at layer {work.layer}, keep {work.keep:g}: {work.kept:.0f} visual tokens go on"),
        ("runs", f"{latency.pairs} pairs in turn{processes}, after {latency.warmup} of each side that do not count"),
        ("cache", _change(side.cache for side in sides)),
    ]
    peaks, gpu = (
        [size for size in sizes if size is not None]
        for sizes in zip(*((each.memory, each.gpu) for each in sides), strict=True)
    )
    facts.append(("peak memory", _change(peaks) if peaks else "not measured: this system does not tell"))
    facts += [("GPU memory", _change(gpu))] if gpu else []
    for energy in latency.energy:
        joules = f"{energy.unpruned:.3g} J -> {energy.pruned:.3g} J"
        facts.append(("energy", f"{joules} an answer, of the {energy.scope} ({energy.meter})"))
    return facts


def _phases(latency: Latency) -> Table:
    """A row for each phase and side: narrow enough for a phone's width to show what belongs together."""
    rows: list[Sequence[object]] = []
    for name in (*PHASES, *SPANS, "step"):
        before, after = (side.phases.get(name) for side in (latency.unpruned, latency.pruned))
        if before is None or after is None:  # an answer of one token has no decode steps
            continue
        ratio = latency.ratios.get(name)
        rows.append((TITLES.get(name, name), "unpruned", *_cells(before), ""))
        rows.append(("", "pruned", *_cells(after), _ratio(ratio) if ratio else ""))
    titles = ("p50", "p90", "p99", "mean", "ratio")
    columns: list[Column | str] = ["ms", "", *(Column(title, number=True) for title in titles)]
    return Table(columns, rows, "Milliseconds of each phase; ratios are unpruned over pruned")


def _cells(found: Spread) -> list[str]:
    p99 = f"{_number(found.worst)}*" if found.p99 is None else _number(found.p99)
    return [_number(found.p50), _number(found.p90), p99, _number(found.mean)]


def _notes(latency: Latency) -> list[str]:
    notes = [PROCESSES.format(latency.processes) if latency.processes > 1 else ONE_PROCESS, HOW]
    fewest = min(found.runs for found in latency.pruned.phases.values())
    notes += [NO_P99.format(fewest)] if fewest < RUNS_FOR_P99 else []
    return [*notes, *latency.notes]


def _distribution(latency: Latency, name: str) -> Chart:
    title = TITLES.get(name, name)
    series = [distribution(side, [1000 * value for value in latency.side(side).times[name]]) for side in SIDES]
    alt = f"Share of {latency.pairs} runs of each kind done within a time, {title}; the table has the percentiles"
    caption = "The share of runs done within a time. Further left is faster, and steeper is steadier."
    x, y = Axis(f"{title}, ms"), Axis("share of runs", "percent", 0.0, 1.0)
    return Chart("lines", f"How long answers take: {title}", alt, series, x, y, caption=caption)


def _ratio(found: Interval) -> str:
    return f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f})"


def _number(seconds: float) -> str:
    return milliseconds(seconds).removesuffix(" ms")


def _change(sizes: Iterable[float]) -> str:
    return " -> ".join(map(human_bytes, sizes))
