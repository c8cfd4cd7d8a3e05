"""Monitors with figures that a test gives."""

from __future__ import annotations

from iwp_export.monitors.figures import DepthPoint, LayerFigures, Monitors
from iwp_export.view.figures import Interval


def monitors(
    depth: tuple[float, ...] = (0.2, 0.2, 0.3, 0.6, 1.0),
    pruning_layer: int = 1,
    keep: float = 0.5,
    answers: bool = True,
) -> Monitors:
    """Of a model of `len(depth) - 1` layers, whose last score is with every token."""
    layers = len(depth) - 1
    whole, pruned = Interval(1.5, 1.25, 1.75), Interval(1.0, 0.75, 1.25)
    points = []
    for layer, score in enumerate(depth):
        around = Interval(score, max(0.0, score - 0.05), min(1.0, score + 0.05))
        points.append(DepthPoint(layer, Interval(1 - score, 0.0, 1.0), around, around if answers else None))
    return Monitors(
        data="some questions",
        questions=40,
        pruning_layer=pruning_layer,
        attention=tuple(LayerFigures(i, 1.0 if i < pruning_layer else keep, whole, pruned) for i in range(layers)),
        depth=tuple(points),
    )
