"""Charts of what was measured again and again, such as latencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iwp_export.view.axes import HEIGHT, PATTERNS, Axis, check, legend, legend_name, set_axes
from iwp_export.view.svg import QUIET, SERIES, Svg, draw

ECDF_STEPS = 500
"""Steps at which a distribution of more values is drawn: a chart has no more pixels."""


@dataclass(frozen=True)
class Values:
    """What was measured again and again, under a name."""

    name: str
    values: tuple[float, ...]


def histogram(name: str, alt: str, series: Sequence[Values], x_axis: Axis, bins: int = 30) -> Svg:
    """How often each range of values was measured; all series in the same bins.

    Raises:
        BackendError: matplotlib is missing.
        ValueError: a number that is not finite, or no number at all.
    """
    _check(series)
    edges = np.histogram_bin_edges([value for values in series for value in values.values], bins)

    def paint(figure: Any, axes: Any) -> None:
        for number, values in enumerate(series):
            counts, _ = np.histogram(values.values, edges)
            colour, pattern = SERIES[number % len(SERIES)], PATTERNS[number % len(PATTERNS)]
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.25)
            axes.stairs(
                counts, edges, color=colour, linestyle=pattern, lw=2, label=legend_name(values.name),
                gid=f"histogram-{number}",
            )  # fmt: skip
        set_axes(axes, x_axis, Axis("runs", low=0))
        legend(figure, axes)

    return draw(name, alt, HEIGHT, paint)


def ecdf(name: str, alt: str, series: Sequence[Values], x_axis: Axis, marks: Sequence[float] = (0.5, 0.9, 0.99)) -> Svg:
    """Share of the values at or below each value, with lines at the shares `marks`.

    Raises:
        BackendError: matplotlib is missing.
        ValueError: a number that is not finite, or no number at all.
    """
    _check(series)

    def paint(figure: Any, axes: Any) -> None:
        for mark in marks:
            axes.axhline(mark, color=QUIET, lw=0.8, linestyle=":")
            axes.annotate(
                f"p{mark * 100:g}", (1, mark), (2, 0), ("axes fraction", "data"), "offset points", va="center"
            )
        for number, values in enumerate(series):
            ordered = np.sort(np.asarray(values.values, float))
            shares = np.arange(1, len(ordered) + 1) / len(ordered)
            if len(ordered) > ECDF_STEPS:
                shares = np.arange(1, ECDF_STEPS + 1) / ECDF_STEPS
                ordered = np.quantile(ordered, shares, method="inverted_cdf")
            axes.step(
                [ordered[0], *ordered], [0, *shares], where="post", color=SERIES[number % len(SERIES)],
                linestyle=PATTERNS[number % len(PATTERNS)], label=legend_name(values.name), gid=f"ecdf-{number}",
            )  # fmt: skip
        set_axes(axes, x_axis, Axis("share of runs", "percent", 0, 1))
        legend(figure, axes)

    return draw(name, alt, HEIGHT, paint)


def _check(series: Sequence[Values]) -> None:
    for values in series:
        check(values.name, (values.values,))
        if not values.values:
            raise ValueError(f"series {values.name!r} has no values")
