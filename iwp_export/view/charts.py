"""The charts of reports. What a series is, its marker or line pattern tells too: colour alone does not for everyone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iwp_export.view.axes import (
    HEIGHT,
    MARKERS,
    NAME_LENGTH,
    PATTERNS,
    Axis,
    check,
    legend,
    legend_name,
    set_axes,
    set_axis,
)
from iwp_export.view.labels import Spot, place
from iwp_export.view.svg import INK, SERIES, Svg, draw
from iwp_export.view.text import short

BAR_HEIGHT = 26.0
"""Units that a bar takes with the room around it."""


@dataclass(frozen=True)
class Points:
    """Points of one kind.

    Attributes:
        name: in the legend.
        x, y: where they are.
        low, high: ends of each point's interval of y; empty for none.
        labels: text beside each point; empty for none.
        hints: what hovering over each point shows; empty for none.
        colour: its number; the series' place if None.
        marker: matplotlib's name of it; by the series' place if None.
        size: of a marker, in units of the chart.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    colour: int | None = None
    marker: str | None = None
    size: float = 8.0


@dataclass(frozen=True)
class Line:
    """A line through points, with a band from `low` to `high` where those are given."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Bar:
    """A horizontal bar from `start` to `start + length`, with its text at its end.

    `interval` has the ends of the 95 % interval of where the bar ends; None draws none.
    """

    name: str
    length: float
    text: str
    start: float = 0.0
    colour: int = 0
    interval: tuple[float, float] | None = None


def scatter(name: str, alt: str, series: Sequence[Points], x_axis: Axis, y_axis: Axis) -> Svg:
    """Points of several kinds; `series` are drawn in their order, the last on top.

    Raises:
        BackendError: matplotlib is missing.
        ValueError: a number that is not finite, or lists of unequal length.
    """
    for points in series:
        check(points.name, (points.x, points.y), (points.low, points.high, points.labels, points.hints))
    shown = [points for points in series if points.x]

    def paint(figure: Any, axes: Any) -> None:
        for number, points in enumerate(series):
            if not points.x:
                continue
            colour = SERIES[(number if points.colour is None else points.colour) % len(SERIES)]
            marker = points.marker or MARKERS[number % len(MARKERS)]
            order = 3 + number
            if points.low:
                reach = [np.subtract(points.y, points.low), np.subtract(points.high, points.y)]
                axes.errorbar(points.x, points.y, reach, fmt="none", ecolor=colour, capsize=3, lw=1.2, zorder=order)
            collection = axes.scatter(
                points.x, points.y, s=points.size**2, marker=marker, label=legend_name(points.name),
                facecolor=colour, edgecolor=colour, alpha=None if points.labels else 0.6, zorder=order,
            )  # fmt: skip
            collection.set_gid(f"points-{number}")
        set_axes(axes, x_axis, y_axis)
        legend(figure, axes)
        _label_points(figure, axes, shown)

    titles = {f"points-{number}": points.hints for number, points in enumerate(series)}
    return draw(name, alt, HEIGHT, paint, titles)


def lines(name: str, alt: str, series: Sequence[Line], x_axis: Axis, y_axis: Axis) -> Svg:
    """Lines with their bands.

    Raises:
        BackendError: matplotlib is missing.
        ValueError: a number that is not finite, or lists of unequal length.
    """
    for line in series:
        check(line.name, (line.x, line.y), (line.low, line.high))

    def paint(figure: Any, axes: Any) -> None:
        for number, line in enumerate(series):
            colour = SERIES[number % len(SERIES)]
            if line.low:
                band = axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, lw=0)
                band.set_gid(f"band-{number}")
            pattern, marker = PATTERNS[number % len(PATTERNS)], MARKERS[number % len(MARKERS)]
            axes.plot(
                line.x, line.y, color=colour, linestyle=pattern, marker=marker, label=legend_name(line.name),
                gid=f"line-{number}",
            )  # fmt: skip
        set_axes(axes, x_axis, y_axis)
        legend(figure, axes)

    return draw(name, alt, HEIGHT, paint)


def bars(name: str, alt: str, series: Sequence[Bar], x_axis: Axis) -> Svg:
    """Horizontal bars, the first on top.

    Raises:
        BackendError: matplotlib is missing.
        ValueError: a number that is not finite.
    """
    check("bars", ([bar.start for bar in series], [bar.length for bar in series]))
    for bar in series:
        check(bar.name, [bar.interval or ()])

    def paint(figure: Any, axes: Any) -> None:
        places = range(len(series))
        colours = [SERIES[bar.colour % len(SERIES)] for bar in series]
        starts, lengths = [bar.start for bar in series], [bar.length for bar in series]
        drawn = axes.barh(places, lengths, left=starts, height=0.62, color=colours)
        for number, bar in enumerate(drawn):
            bar.set_gid(f"bar-{number}")
        for row, each in enumerate(series):
            end = max(each.start + each.length, *(each.interval or (0.0,)))
            text, offset = short(each.text, NAME_LENGTH), (6, 0)
            axes.annotate(text, (end, row), offset, textcoords="offset points", va="center", color=INK)
            if each.interval is not None:
                axes.plot(each.interval, (row, row), color=INK, lw=1.4, marker="|", gid=f"interval-{row}")
        axes.set_yticks(places, [short(bar.name, NAME_LENGTH) for bar in series])
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.invert_yaxis()
        set_axis(axes.xaxis, axes.set_xlim, x_axis)
        axes.set_xlabel(x_axis.label)
        if x_axis.high is None:
            axes.margins(x=0.18)  # for the text at the longest bar's end

    return draw(name, alt, BAR_HEIGHT * len(series) + 60, paint)


def waterfall(name: str, alt: str, stages: Sequence[tuple[str, float]], x_axis: Axis, total: str = "total") -> Svg:
    """Where time goes: a bar a stage, each beginning where the one before ends, and their sum.

    Raises:
        BackendError: matplotlib is missing.
        ValueError: a number that is not finite.
    """
    whole = sum(length for _, length in stages)
    drawn, start = [], 0.0
    for stage, length in stages:
        share = f" ({100 * length / whole:.0f} %)" if whole > 0 else ""
        drawn.append(Bar(stage, length, f"{length:.3g}{share}", start))
        start += length
    return bars(name, alt, [*drawn, Bar(total, whole, f"{whole:.3g}", colour=5)], x_axis)


def _label_points(figure: Any, axes: Any, series: Sequence[Points]) -> None:
    """Text beside points, where it covers little."""
    figure.draw_without_rendering()  # settles where the axes are
    figure.set_layout_engine("none")
    spots = [
        Spot(x, y, points.size / 2, short(text, NAME_LENGTH))
        for points in series
        for (x, y), text in zip(
            axes.transData.transform(np.column_stack([points.x, points.y])),
            points.labels or ("",) * len(points.x),
            strict=True,
        )
    ]
    box = axes.get_window_extent()
    for label in place(spots, (box.x0, box.y0, box.x1, box.y1)):
        axes.annotate(
            label.text, label.spot, label.offset, "figure pixels", "offset points",
            ha=label.across, va=label.along, zorder=20, annotation_clip=False,
        )  # fmt: skip
