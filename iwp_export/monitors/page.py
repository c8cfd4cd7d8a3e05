"""The monitors' figures as blocks of a page, and as a picture of their own. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

from iwp_export.monitors.figures import LayerFigures, Monitors
from iwp_export.monitors.knee import RULES, sentence, warnings
from iwp_export.monitors.words import Rows, budget_rows, depth_rows, layer_rows, verdict
from iwp_export.view.axes import Axis
from iwp_export.view.charts import Line, lines
from iwp_export.view.figures import Interval
from iwp_export.view.page import Beside, Block, Chart, Column, Fold, Paragraph, Table, Verdict
from iwp_export.view.svg import Svg

MOST_KINDS = 4
"""Kinds of questions that get a line of their own: more cannot be told apart."""


def blocks(monitors: Monitors) -> list[Block]:
    """All of it: verdict, charts, and tables to fold out.

    Raises:
        BackendError: matplotlib is missing.
    """
    first = monitors.depth[0].layer
    depth = Chart(
        depth_chart(monitors),
        f"Where the model reads the image: the {monitors.measure} if no visual token goes on from a layer on. The "
        f"rightmost point has every token, the one at {first} none. Bands are 95 % intervals.",
    )
    budget = Chart(
        budget_chart(monitors), f"The {monitors.measure} by budget, pruned at layer {monitors.pruning_layer}."
    )
    shown: list[Block] = [
        Verdict([*warnings(monitors), *verdict(monitors)]),
        Beside((depth, budget)),
    ]
    if monitors.attention:
        entropy = Chart(entropy_chart(monitors), "How widely text attends: entropy of attention weights by layer.")
        visual = Chart(visual_chart(monitors), "How much of the text's attention is on visual tokens.")
        shown.append(Beside((entropy, visual)))
    tables: list[Block] = [
        _table("Read-depth curve", depth_rows(monitors)),
        _table("Budgets", budget_rows(monitors)),
        *([_table("Attention by layer", layer_rows(monitors))] if monitors.attention else []),
        *(Paragraph(sentence(rule), quiet=True) for rule in RULES),
    ]
    return [*shown, Fold(f"Figures of {monitors.questions:,} questions of {monitors.data}, and the rules", tables)]


def picture(monitors: Monitors) -> list[Svg]:
    """The charts alone.

    Raises:
        BackendError: matplotlib is missing.
    """
    charts = [depth_chart(monitors), budget_chart(monitors)]
    return [*charts, entropy_chart(monitors), visual_chart(monitors)] if monitors.attention else charts


def depth_chart(monitors: Monitors) -> Svg:
    """The read-depth curve, of all questions and of each kind."""
    places = tuple(float(point.layer) for point in monitors.depth)
    series = [_line(f"all, {monitors.measure}", places, [monitors.score(point.left) for point in monitors.depth])]
    kinds = list(monitors.depth[-1].left.kinds)
    if 1 < len(kinds) <= MOST_KINDS:
        series += [Line(kind, places, tuple(point.left.kinds[kind] for point in monitors.depth)) for kind in kinds]
    series.append(Line("pruned here", (float(monitors.pruning_layer),) * 2, (0.0, 1.0)))
    alt = f"Read-depth curve: {monitors.measure} of {monitors.questions} questions by the layer that ends the image"
    return lines("monitor-depth", alt, series, _layer_axis("no visual token from layer"), _share_axis(monitors.measure))


def budget_chart(monitors: Monitors) -> Svg:
    """The score by budget."""
    points = monitors.budget[::-1]
    scores = [monitors.score(point.left) for point in points]
    line = _line(monitors.measure, tuple(point.keep for point in points), scores)
    alt = f"{monitors.measure.capitalize()} by the share of visual tokens that is kept"
    return lines(
        "monitor-budget", alt, [line], Axis("visual tokens kept", "percent", low=0.0), _share_axis(monitors.measure)
    )


def entropy_chart(monitors: Monitors) -> Svg:
    """Entropy by layer."""
    series = _two([(each, each.entropy, each.entropy_pruned) for each in monitors.attention])
    alt = "Entropy of the text's attention by layer, with every visual token and pruned"
    return lines("monitor-entropy", alt, series, _layer_axis("layer"), Axis("entropy of attention, nats", low=0.0))


def visual_chart(monitors: Monitors) -> Svg:
    """Share of attention on visual tokens by layer."""
    series = _two([(each, each.visual, each.visual_pruned) for each in monitors.attention])
    alt = "Share of the text's attention on visual tokens by layer, with every visual token and pruned"
    return lines("monitor-visual", alt, series, _layer_axis("layer"), _share_axis("attention to visual tokens"))


def _two(rows: Sequence[tuple[LayerFigures, Interval, Interval]]) -> list[Line]:
    places = tuple(float(figures.layer) for figures, _, _ in rows)
    return [
        _line("every token", places, [value for _, value, _ in rows]),
        _line("pruned", places, [value for _, _, value in rows]),
    ]


def _line(name: str, places: tuple[float, ...], values: Sequence[Interval]) -> Line:
    low, high = tuple(value.low for value in values), tuple(value.high for value in values)
    return Line(name, places, tuple(value.mean for value in values), low, high)


def _layer_axis(label: str) -> Axis:
    return Axis(label, "whole")


def _share_axis(label: str) -> Axis:
    return Axis(label, "percent", low=0.0)


def _table(caption: str, rows: Rows) -> Table:
    head, body = rows
    return Table([head[0], *(Column(title, number=True) for title in head[1:])], body, caption)
