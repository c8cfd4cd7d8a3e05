"""Monitors with figures that a test gives."""

from __future__ import annotations

from collections.abc import Mapping

from iwp_export.monitors.figures import BudgetPoint, DepthPoint, Kept, LayerFigures, Monitors
from iwp_export.view.figures import Interval


def left(score: float, answers: bool = True) -> Kept:
    around = Interval(score, max(0.0, score - 0.05), min(1.0, score + 0.05))
    nothing = Interval(1 - score, 0.0, 1.0)
    return Kept(nothing, around, around if answers else None, {"digit": score} if answers else {})


def monitors(
    depth: tuple[float, ...] = (0.2, 0.2, 0.3, 0.6, 1.0),
    budget: Mapping[float, float] | None = None,
    pruning_layer: int = 1,
    keep: float = 0.5,
    answers: bool = True,
) -> Monitors:
    """Of a model of `len(depth) - 1` layers, whose last score is with every token."""
    layers = len(depth) - 1
    some = Interval(1.5, 1.25, 1.75), Interval(1.0, 0.75, 1.25), Interval(0.5, 0.25, 0.75), Interval(0.25, 0.0, 0.5)
    return Monitors(
        data="some questions",
        questions=40,
        layers=layers,
        pruning_layer=pruning_layer,
        keep=keep,
        visual_tokens=64.0,
        text_tokens=20.0,
        attention=tuple(LayerFigures(i, 1.0 if i < pruning_layer else keep, *some) for i in range(layers)),
        depth=tuple(DepthPoint(layer, left(score, answers)) for layer, score in enumerate(depth)),
        budget=tuple(
            BudgetPoint(share, left(score, answers))
            for share, score in (budget or {1.0: depth[-1], 0.5: 0.98, 0.2: 0.7}).items()
        ),
    )
