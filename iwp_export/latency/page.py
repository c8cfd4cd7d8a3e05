"""A bench as blocks of an HTML page, from its figures alone."""

from __future__ import annotations

from iwp_export.latency.figures import PHASES, TITLES, Latency, Side
from iwp_export.latency.words import COLUMNS, joules, loop_words, phase_rows, remarks, runs, verdict
from iwp_export.tables import human_bytes
from iwp_export.view import charts, distributions
from iwp_export.view import page as html
from iwp_export.view.axes import Axis

MS = 1000
SIDES = ("unpruned", "pruned")
DRAWN = ("end_to_end", "prefill", "first_token")


def blocks(latency: Latency) -> list[html.Block]:
    """The verdict, distributions, where the time goes, the table of phases, and what else is known.

    Raises:
        BackendError: matplotlib is missing.
    """
    return [
        html.Verdict(verdict(latency)),
        html.Section("How long answers take", [html.Beside([_ecdf(latency, name) for name in DRAWN[:2]])], level=3),
        html.Section("Where the time goes", [html.Beside([_waterfall(latency, side) for side in SIDES])], level=3),
        html.Section("Phases", [_phases(latency), *_steps(latency)], level=3),
        html.Section("Memory, energy and caches", _memory(latency), level=3),
        html.Section(
            "How it was measured", [html.Pairs(_how(latency)), *map(html.Paragraph, remarks(latency))], level=3
        ),
    ]


def _side(latency: Latency, side: str) -> Side:
    return latency.pruned if side == "pruned" else latency.unpruned


def _ecdf(latency: Latency, name: str) -> html.Chart:
    series = [
        distributions.Values(side, tuple(MS * value for value in getattr(_side(latency, side), name))) for side in SIDES
    ]
    title = TITLES[name]
    alt = f"Share of {latency.pairs} runs of each kind done within a time, {title}; the table has the percentiles"
    caption = (
        f"{title.capitalize()}: the share of runs done within a time. Further left is faster, and steeper is steadier."
    )
    drawn = distributions.ecdf(f"latency-{name.replace('_', '-')}", alt, series, Axis(f"{title}, ms"))
    return html.Chart(drawn, caption)


def _waterfall(latency: Latency, side: str) -> html.Chart:
    """Both sides with the same axis, so that their bars compare."""
    longest = MS * max(_side(latency, each).phases["end_to_end"].mean for each in SIDES)
    spreads = _side(latency, side).phases
    stages = [(TITLES[name], MS * spreads[name].mean) for name in (*PHASES, "rest")]
    alt = f"Mean time of each phase, {side}; the table has the values"
    axis = Axis(f"{side}, ms", low=0, high=1.45 * longest)  # room for the text at the longest bar's end
    return html.Chart(charts.waterfall(f"latency-{side}", alt, stages, axis), f"Mean time of each phase, {side}.")


def _phases(latency: Latency) -> html.Table:
    """A row for each phase and side: narrow enough for a phone's width to show what belongs together."""
    columns: list[html.Column | str] = [
        "Phase",
        "",
        *(html.Column(title, number=True) for title in (*COLUMNS, "ratio")),
    ]
    rows = []
    for row in phase_rows(latency):
        if any(row.unpruned):
            rows.append((row.title, "unpruned", *row.unpruned, ""))
        rows.append((row.title.strip(), "pruned", *row.pruned, row.ratio))
    return html.Table(columns, rows, "Milliseconds of each phase; ratios are unpruned over pruned")


def _steps(latency: Latency) -> list[html.Block]:
    if len(latency.pruned.steps) < 2:
        return []
    lines = [
        charts.Line(side, tuple(map(float, range(1, len(steps) + 1))), tuple(MS * step for step in steps))
        for side, steps in ((side, _side(latency, side).steps) for side in SIDES)
    ]
    alt = "Median time of each decode step over the runs, pruned and unpruned"
    axes = Axis("decode step", "whole"), Axis("median, ms", low=0)
    return [html.Chart(charts.lines("latency-steps", alt, lines, *axes), "Each decode step: median over the runs.")]


def _memory(latency: Latency) -> list[html.Block]:
    """Memory of both sides by phase; energy where it was measured."""
    memory = latency.memory
    columns: list[html.Column | str] = ["", *(html.Column(title, number=True) for title in (*PHASES, "cache", "GPU"))]
    rows = []
    for side in SIDES:
        peaks = [memory.peaks.get(f"{side} {name}") for name in PHASES]
        sizes = [*peaks, _side(latency, side).cache_bytes, memory.gpu.get(side)]
        rows.append([side, *("-" if size is None else human_bytes(size) for size in sizes)])
    loaded = "" if memory.loaded is None else f"; {human_bytes(memory.loaded)} before the first run"
    caption = f"Peak memory of the process in each phase, the cache at the end, and what is in use on the GPU{loaded}"
    drawn = [(energy.meter, joules(energy)) for energy in latency.energy]
    return [html.Table(columns, rows, caption), *([html.Pairs(drawn)] if drawn else [])]


def _how(latency: Latency) -> list[tuple[str, object]]:
    work = latency.workload
    rows: list[tuple[str, object]] = [
        ("Artefact", f"{latency.artefact}, {latency.dtype}, {latency.provider}"),
        ("Asked", f"{work.source}; {work.new_tokens} new tokens"),
        ("Prompt", f"{work.visual_tokens:.0f} visual and {work.text_tokens:.0f} text tokens"),
        ("Pruning", f"at layer {work.layer}, keep {work.keep:g}: {work.kept:.0f} visual tokens go on"),
        ("Runs", runs(latency)),
    ]
    return [*rows, *(("Control loop", loop_words(loop)) for loop in latency.loops)]
