"""Draws the charts of a view with matplotlib, as SVG images in the colours of a light and of a dark page."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np

from iwp_export.errors import BackendError
from iwp_export.view.view import Axis, Chart, Series, one_line

WIDTH, HEIGHT = 400, 300
"""Units of a chart. It scales to its box: text of 13 units has 10 pixels on a phone and 15 on a desktop."""
FONT_SIZE = 13
LETTER, LEGEND_MARK = 7, 42
"""Units of a letter's width, and of a legend's marker with the room around it; the browser's font is not known."""
NAME_LENGTH = 28
"""Characters of a name in a chart."""
X_TICKS = 6
"""Intervals between the numbers of the axis of x at most: more would touch each other."""
MOST_MARKERS = 12
"""Markers on a line: more would hide its pattern."""
MARKERS = ("o", "s", "^", "D", "v", "P")
PATTERNS = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
UNITS = {"percent": "{:g} %", "factor": "{:g}x"}
ZERO_WIDTH = "\u200b"


@dataclass(frozen=True)
class Scheme:
    """Colours of a page; `series` are Okabe and Ito's, which differ for colour-blind readers too, with 4.5:1."""

    ink: str
    quiet: str
    line: str
    wash: str
    paper: str
    series: tuple[str, ...]


SCHEMES = {
    "light": Scheme(
        "#1b1f24", "#5b6470", "#d5dae0", "#f3f5f7", "#ffffff",
        ("#0072b2", "#c44e00", "#00795a", "#a8468a", "#8a6100", "#5b6470"),
    ),
    "dark": Scheme(
        "#e8ebef", "#a3adba", "#39424e", "#1c222a", "#12161b",
        ("#6cb8f0", "#ff9a5c", "#3cc9a0", "#e79bcb", "#e0b44c", "#9aa4b2"),
    ),
}  # fmt: skip


def check_installed() -> None:
    """Refuse, before work of hours whose result is a page, where its charts cannot be drawn.

    Raises:
        BackendError: matplotlib is missing.
    """
    try:
        import matplotlib.backends.backend_svg  # noqa: F401
    except ImportError as error:
        name = (error.name or "matplotlib").partition(".")[0]  # or something that matplotlib needs
        raise BackendError(f"charts need {name}; to get it: pip install 'iwp-export[report]'") from error


def svg(chart: Chart, scheme: Literal["light", "dark"]) -> bytes:
    """An SVG file of a chart, transparent and without its title; the same chart gives the same bytes.

    Raises:
        BackendError: matplotlib is missing.
    """
    check_installed()
    import matplotlib
    from matplotlib.figure import Figure

    colours, buffer = SCHEMES[scheme], BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser has fonts of its own
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
        matplotlib.rcParams.update(_style(colours))
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72, layout="constrained")
        _draw(figure, chart, colours)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def _style(scheme: Scheme) -> dict[str, Any]:
    sizes = ("font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize")
    inks = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
    return {
        **dict.fromkeys(sizes, FONT_SIZE),
        **dict.fromkeys(inks, scheme.ink),
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), scheme.quiet),
        "grid.color": scheme.line,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "lines.linewidth": 2.0,
        "font.sans-serif": ["DejaVu Sans"],  # or the browser's sans-serif: the name of the family follows it
        "text.parse_math": False,  # a prompt may hold dollar signs
        "svg.fonttype": "none",  # a fifth of the size, and letters that matplotlib's fonts lack
        "svg.hashsalt": "iwp-export",
    }


def _draw(figure: Any, chart: Chart, scheme: Scheme) -> None:
    axes = figure.add_subplot()
    for number, series in enumerate(chart.series):
        if series.x:
            (_line if chart.kind == "lines" else _points)(axes, series, number, scheme)
            _label(axes, series, scheme)
    _set_axis(axes.yaxis, axes.set_ylim, chart.y)
    if chart.y.label.casefold() != chart.title.casefold():
        axes.set_title(one_line(chart.y.label, 2 * NAME_LENGTH), loc="left")  # where there is room for words
    _set_axis(axes.xaxis, axes.set_xlim, chart.x)
    axes.xaxis.get_major_locator().set_params(nbins=X_TICKS)
    axes.set_xlabel(one_line(chart.x.label, 2 * NAME_LENGTH))
    _legend(figure, axes)


def _line(axes: Any, series: Series, number: int, scheme: Scheme) -> None:
    colour = scheme.series[number % len(scheme.series)]
    if series.low:
        axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.18, lw=0)
    look = {"marker": MARKERS[number % len(MARKERS)], "markevery": 1 + len(series.x) // MOST_MARKERS}
    pattern = PATTERNS[number % len(PATTERNS)]
    axes.plot(series.x, series.y, color=colour, linestyle=pattern, label=_legend_name(series.name), **look)


def _points(axes: Any, series: Series, number: int, scheme: Scheme) -> None:
    """Points with names are few and stand out; of many without, those below show through."""
    colour, front = scheme.series[number % len(scheme.series)], 3 + number
    if series.low:
        reach = np.maximum(0, [np.subtract(series.y, series.low), np.subtract(series.high, series.y)])
        axes.errorbar(series.x, series.y, reach, fmt="none", ecolor=colour, capsize=3, lw=1.2, zorder=front)
    look = {"s": 80, "alpha": 1.0} if series.labels else {"s": 40, "alpha": 0.65}
    marker, name = MARKERS[number % len(MARKERS)], _legend_name(series.name)
    axes.scatter(series.x, series.y, color=colour, marker=marker, label=name, zorder=front, **look)


def _label(axes: Any, series: Series, scheme: Scheme) -> None:
    """Text beside points, in front of all others."""
    behind = {"facecolor": scheme.paper, "edgecolor": "none", "alpha": 0.7, "pad": 1}
    place = {"textcoords": "offset points", "va": "center", "zorder": 20, "annotation_clip": False, "bbox": behind}
    for x, y, text in zip(series.x, series.y, series.labels, strict=False):
        axes.annotate(one_line(text, NAME_LENGTH), (x, y), (8, 8), **place)


def _set_axis(axis: Any, set_limits: Any, shown: Axis) -> None:
    """How the axis' numbers are written, and its ends where those are given."""
    form = UNITS.get(shown.unit, "{:g}")
    scale = 100 if shown.unit == "percent" else 1
    axis.set_major_formatter(lambda value, _: form.format(scale * value))
    if shown.unit == "whole":
        axis.get_major_locator().set_params(integer=True)
    if shown.low is not None or shown.high is not None:
        set_limits(shown.low, shown.high)


def _legend_name(name: str) -> str:
    """matplotlib leaves out of the legend what begins with an underscore."""
    text = one_line(name, NAME_LENGTH)
    return f"{ZERO_WIDTH}{text}" if text.startswith("_") else text


def _legend(figure: Any, axes: Any) -> None:
    """Above the axes, in as many columns as fit."""
    names = axes.get_legend_handles_labels()[1]
    if len(names) > 1:
        columns = int(WIDTH / (max(map(len, names)) * LETTER + LEGEND_MARK))
        look = {"handletextpad": 0.4, "columnspacing": 1.2, "borderpad": 0.3, "markerscale": 0.8}
        figure.legend(loc="outside upper left", ncols=max(1, min(columns, len(names))), **look)
