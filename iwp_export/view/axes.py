"""What the charts share: axes, legends, and how series differ."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from iwp_export.view.labels import LETTER
from iwp_export.view.svg import WIDTH
from iwp_export.view.text import short

MARKERS = ("o", "s", "^", "D", "v", "P")
PATTERNS = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
HEIGHT = 300.0
"""Units of a chart's height, of which it is 400 wide."""
LEGEND_MARK = 40.0
"""Units of a legend's marker with the room around it."""
NAME_LENGTH = 28
"""Characters of a name in a chart."""
X_TICKS = 6
"""Intervals between the numbers of the axis of x at most: more would touch each other."""
ZERO_WIDTH = "\u200b"


@dataclass(frozen=True)
class Axis:
    """What an axis shows; values are drawn as numbers, as percent (0.5 is 50 %), as factors (1.5x), or at whole numbers
    alone."""

    label: str
    unit: Literal["number", "percent", "factor", "whole"] = "number"
    low: float | None = None
    high: float | None = None


def legend_name(name: str) -> str:
    """A series' name for the legend; matplotlib leaves out names that begin with an underscore."""
    text = short(name, NAME_LENGTH)
    return f"{ZERO_WIDTH}{text}" if text.startswith("_") else text


def check(name: str, columns: Iterable[Iterable[float]], optional: Iterable[Iterable[Any]] = ()) -> None:
    """Refuse what cannot be drawn.

    Args:
        name: of the series.
        columns: numbers, as many in each.
        optional: as many numbers or texts as that in each, or none.

    Raises:
        ValueError: columns of other lengths, or a number that is not finite.
    """
    lists = [list(column) for column in columns]
    lists += [column for column in map(list, optional) if column]
    for column in lists:
        if len(column) != len(lists[0]):
            raise ValueError(f"series {name!r} has {len(lists[0])} points, but a list of {len(column)} values for them")
        if not all(math.isfinite(value) for value in column if not isinstance(value, str)):
            raise ValueError(f"series {name!r} has a value that is not finite")


def set_axes(axes: Any, x_axis: Axis, y_axis: Axis) -> None:
    """Both axes, with what they show."""
    set_axis(axes.xaxis, axes.set_xlim, x_axis)
    set_axis(axes.yaxis, axes.set_ylim, y_axis)
    axes.xaxis.get_major_locator().set_params(nbins=X_TICKS)
    axes.set_xlabel(x_axis.label)
    axes.set_title(y_axis.label, loc="left")  # across the top, where a narrow chart has room for words


def set_axis(axis: Any, set_limits: Any, shown: Axis) -> None:
    """One of matplotlib's axis objects: how its numbers are written, and its ends where those are given."""
    forms = {"percent": "{:g} %", "factor": "{:g}x"}
    scale = 100 if shown.unit == "percent" else 1
    axis.set_major_formatter(lambda value, _: forms.get(shown.unit, "{:g}").format(round(value * scale, 6)))
    if shown.unit == "whole":
        axis.get_major_locator().set_params(integer=True)
    if shown.low is not None or shown.high is not None:
        set_limits(shown.low, shown.high)


def legend(figure: Any, axes: Any) -> None:
    """Above the axes, in as many columns as fit."""
    names = axes.get_legend_handles_labels()[1]
    if len(names) > 1:
        columns = int(WIDTH / (max(map(len, names)) * LETTER + LEGEND_MARK))
        figure.legend(
            loc="outside upper left", ncols=max(1, min(columns, len(names))),
            handletextpad=0.4, columnspacing=1.2, borderpad=0.3, markerscale=0.8,
        )  # fmt: skip
