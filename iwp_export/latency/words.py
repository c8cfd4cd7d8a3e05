"""A bench as text: its verdict, and what was asked and measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from iwp_export.latency.figures import (
    PHASES,
    SPANS,
    TITLES,
    Dropped,
    Energy,
    Latency,
    Loop,
    Ratio,
    Side,
    Trend,
)
from iwp_export.latency.spread import RUNS_FOR_P99, Spread
from iwp_export.tables import human_bytes, pairs, table

SHORTFALL = 0.9
"""Below this part of the promise a prefill has missed it."""
BUSY = 0.5
"""Load average a processor from which other work takes turns with the bench."""
HELPS = {
    "decode": "shorter answers or smaller weights would help more",
    "vision": "pruning does not touch the vision tower",
    "preprocess": "pruning does not touch the host's work on images",
    "rest": "that is the host's work between the phases",
}
COLUMNS = ("p50", "p90", "p99", "mean")
NO_P99 = f"* the slowest run: a p99 means nothing of fewer than {RUNS_FOR_P99} runs, and there are {{}}"
SIDES = ("unpruned", "pruned")
REPEATS = (
    "ratios are unpruned over pruned, of the middle of all pairs; another bench like this one gives a ratio within the "
    "interval 98 times of 100. Intervals of means are of 95 %"
)


def figures(latency: Latency) -> str:
    """What was asked and measured, for the terminal; the verdict is apart."""
    work = latency.workload
    head = [
        ("artefact", f"{latency.artefact}, {latency.dtype}, {latency.provider}"),
        ("asked", f"{work.source}; {work.new_tokens} new tokens"),
        ("prompt", f"{work.visual_tokens:.0f} visual and {work.text_tokens:.0f} text tokens"),
        ("pruning", f"at layer {work.layer}, keep {work.keep:g}: {work.kept:.0f} visual tokens go on"),
        ("runs", runs(latency)),
        *_extras(latency),
    ]
    notes = "\n".join(f"  {line}" for line in remarks(latency))
    return f"{pairs(head)}\n\n{table(_lines(latency))}\n\nnotes\n{notes}"


def verdict(latency: Latency) -> list[str]:
    """What the numbers say; the first sentence is the headline."""
    said = [f"{_prefill(latency)}; {_whole(latency)}"]
    promised = latency.ratios["prefill"].promised
    if promised is not None and latency.ratios["prefill"].high < SHORTFALL * promised:
        said.append(_shortfall(latency))
    for side in latency.dropped:
        if side.side == "pruned":
            said.append(dropped(side) if drops_any(latency) else f"NO TOKENS WERE DROPPED: {layers_of(side.found)}")
    said += [loop_words(loop) for loop in latency.loops]
    return said


def doubts(latency: Latency) -> list[str]:
    """What makes the figures unreliable."""
    said = [trend_words(trend) for trend in latency.trends]
    if latency.load and latency.load[0] > BUSY * latency.cpus:
        load = f"load average {latency.load[0]:g} on {latency.cpus} processors"
        said.append(f"the machine was busy before the bench ({load}): its times and ratios are a busy machine's")
    return said


def _prefill(latency: Latency) -> str:
    found = latency.ratios["prefill"]
    promise = "" if found.promised is None else f" of {found.promised:.2f} promised"
    return f"prefill {ratio(found)}{promise}"


def _whole(latency: Latency) -> str:
    found = latency.ratios["end_to_end"]
    name, share = _largest(latency.pruned)
    because = f"{TITLES[name]} takes {100 * share:.0f} %: {HELPS[name]}" if name in HELPS else ""
    said = f"end to end {ratio(found)}"
    if found.low <= 1:
        shown = "pruning makes it slower" if found.high < 1 else "no speed-up is shown"
        return f"{said}: {shown}" + (f"; {because}" if because else "")
    if because and found.value < latency.ratios["prefill"].value:
        return f"{said} because {because}"
    return f"{said}; time to first token {ratio(latency.ratios['first_token'])}"


def _largest(side: Side) -> tuple[str, float]:
    """The phase that takes most of the time, and its part."""
    return max(((name, side.share(name)) for name in (*PHASES, "rest")), key=lambda pair: pair[1])


def _shortfall(latency: Latency) -> str:
    said = "the prefill misses its promise: the count of operations does not see what a call costs whatever its length"
    chosen, prefill = latency.selection.seconds, latency.pruned.phases["prefill"]
    if chosen is None:
        return said
    return (
        f"{said}, nor the choice of tokens ({milliseconds(chosen.p50)}, {100 * chosen.p50 / prefill.p50:.0f} % of it)"
    )


def drops_any(latency: Latency) -> bool:
    """Whether the pruned caches hold less than the unpruned ones at all, or there is no proof to look at."""
    held = {side.side: sum(side.found) for side in latency.dropped}
    return "pruned" not in held or "unpruned" not in held or held["pruned"] < held["unpruned"]


def dropped(side: Dropped) -> str:
    """Whether tokens were dropped, and how that is known."""
    if side.found == side.expected and not side.flaw:
        return f"tokens were dropped: {layers_of(side.found)} ({side.how})"
    flaw = side.flaw or f"the caches should be {layers_of(side.expected)}"
    return f"TOKENS WERE NOT DROPPED as they should be: {layers_of(side.found)} ({side.how}); {flaw}"


def layers_of(lengths: Sequence[int]) -> str:
    """Cache lengths, layers of the same length together: `layers 0 to 3 hold 97, 4 to 7 hold 41`."""
    parts, first = [], 0
    for length, group in itertools.groupby(lengths):
        last = first + len(list(group)) - 1
        parts.append(f"{first} to {last} hold {length}" if last > first else f"{first} holds {length}")
        first = last + 1
    return f"layers {', '.join(parts)}"


def loop_words(loop: Loop) -> str:
    """What became of requests at a fixed rate."""
    said = f"at {loop.hz:g} Hz, {loop.side}: {loop.missed} of {len(loop.lateness)} deadlines missed"
    return (
        f"{said} (the next request was due), the latest by {milliseconds(max(loop.lateness))}" if loop.missed else said
    )


def trend_words(trend: Trend) -> str:
    """That the runs were not all alike."""
    moved = "rose" if trend.change > 0 else "fell"
    return (
        f"{trend.side} {TITLES[trend.phase]} {moved} over the runs by {100 * abs(trend.change):.0f} % of its median: "
        "warm up longer, or keep the machine's clocks and its other work steady"
    )


def runs(latency: Latency) -> str:
    """How often each side ran."""
    return f"{latency.pairs} pairs in turn, after {latency.warmup} of each side that do not count"


def remarks(latency: Latency) -> list[str]:
    """How to read the figures, and what was not measured."""
    lines = [REPEATS]
    fewest = min(spread.runs for spread in (*latency.pruned.phases.values(), latency.selection.seconds) if spread)
    if fewest < RUNS_FOR_P99:
        lines.append(NO_P99.format(fewest))
    lines.append(
        "one request at a time; each computes its image's features anew, and a phase ends when its results are there"
    )
    if latency.selection.seconds is None:
        lines.append(f"selection {latency.selection.how}")
    else:
        lines.append(f"selection is {latency.selection.how}; the prefill contains it")
    if latency.load:
        lines.append(f"load average {' before and '.join(f'{value:g}' for value in latency.load)} after")
    return [*lines, *latency.notes]


class Row(NamedTuple):
    """A phase in the table: cells by `COLUMNS` of each side, empty where it has none, and the ratio."""

    title: str
    unpruned: Sequence[str]
    pruned: Sequence[str]
    ratio: str


def phase_rows(latency: Latency) -> list[Row]:
    """The table of phases, in milliseconds."""
    rows = []
    for name in (*PHASES, "rest", *SPANS, "step"):
        before, after = (side.phases.get(name) for side in (latency.unpruned, latency.pruned))
        if before is None or after is None:
            continue
        found = latency.ratios.get(name)
        rows.append(Row(TITLES[name], _cells(before), _cells(after), ratio(found) if found else ""))
        if name == "prefill" and latency.selection.seconds is not None:
            rows.append(Row("  of it selection", ("",) * len(COLUMNS), _cells(latency.selection.seconds), ""))
    return rows


def _lines(latency: Latency) -> list[list[str]]:
    lines = [["ms, unpruned -> pruned", *COLUMNS, "ratio"]]
    for row in phase_rows(latency):
        cells = [
            f"{before} -> {after}" if before else after for before, after in zip(row.unpruned, row.pruned, strict=True)
        ]
        lines.append([row.title, *cells, row.ratio])
    return lines


def _cells(spread: Spread) -> list[str]:
    p99 = f"{number(spread.worst)}*" if spread.p99 is None else number(spread.p99)
    mean = f"{number(spread.mean)} ({number(spread.low)} to {number(spread.high)})"
    return [number(spread.p50), number(spread.p90), p99, mean]


def _extras(latency: Latency) -> list[tuple[str, str]]:
    memory, rows = latency.memory, []
    if memory.peaks:
        peaks = {side: max(memory.peaks[name] for name in memory.peaks if name.split()[0] == side) for side in SIDES}
        said = ", ".join(f"{side} {human_bytes(value)}" for side, value in peaks.items())
        loaded = f" ({human_bytes(memory.loaded)} before the first run)" if memory.loaded is not None else ""
        rows.append(("peak memory", said + loaded))
    else:
        rows.append(("peak memory", "not measured: this system does not tell"))
    if memory.gpu:
        rows.append(("GPU memory", ", ".join(f"{side} {human_bytes(value)}" for side, value in memory.gpu.items())))
    caches = (latency.unpruned.cache_bytes, latency.pruned.cache_bytes)
    rows.append(("cache", " -> ".join(human_bytes(value) for value in caches)))
    return [*rows, *(("energy", joules(energy)) for energy in latency.energy)]


def joules(energy: Energy) -> str:
    """Energy of an answer by one meter."""
    means = (sum(values) / len(values) for values in (energy.unpruned, energy.pruned))
    return f"{' -> '.join(f'{value:.3g} J' for value in means)} an answer, of the {energy.scope} ({energy.meter})"


def ratio(found: Ratio) -> str:
    """A ratio with its interval."""
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def milliseconds(seconds: float) -> str:
    """A time in milliseconds."""
    return f"{number(seconds)} ms"


def number(seconds: float) -> str:
    """Milliseconds, three figures."""
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
