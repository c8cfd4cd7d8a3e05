"""What a calibration tries: settings beside the paper's, at layers and keep ratios that a budget allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from iwp_export.errors import SettingsError
from iwp_export.pruning.cost import PrefillCost
from iwp_export.pruning.settings import PruningSettings, check_keep

ONE_BY_ONE: dict[str, object] = {"chunk": 1, "growth": 1}
LAST: dict[str, object] = {"query": "last", "rope_in_importance": True}
VARIANTS: tuple[Mapping[str, object], ...] = (
    {},
    ONE_BY_ONE,
    {"penalty": 0.0},
    {**LAST},
    {**LAST, **ONE_BY_ONE},
    {"query_pool": "max", **ONE_BY_ONE},
    {"importance": "value"},
    {"importance": "value", **ONE_BY_ONE},
    {"importance": "value_centred", **ONE_BY_ONE},
    {"importance": "leave_one_out", **LAST, **ONE_BY_ONE},
    {"importance": "leave_one_out", "query_pool": "mean", **ONE_BY_ONE},
    {"importance": "leave_one_out", "query_pool": "max", "head_pool": "max", **ONE_BY_ONE},
    {"select": "coverage"},
    {"select": "coverage", "similarity": "value"},
)
"""Changes to the paper's settings. Which of them is good differs from model to model: see docs/calibration.md."""

CONTROLS = ("random", "grid")
"""Always scored beside the choice: what does not look at the image's content."""

DEPTHS = (2 / 28, 4 / 28, 7 / 28, 10 / 28, 14 / 28)
"""Layers that are tried, as shares of the model's: the paper tries 0 to 10 of 28. Beyond the middle little is saved."""

LADDER = (0.5, 0.353, 0.222, 0.111)
"""Keep ratios that are tried where the budget leaves them open: the paper's, and a half."""


@dataclass(frozen=True)
class Budget:
    """What a calibration may spend.

    Attributes:
        kind: `keep`: these keep ratios; `speedup`: layers and keep ratios with this speed-up of the prefill, by
            operations; `max_drop`: the fastest of which at most this share of answers differs.
        values: keep ratios, or one number.
    """

    kind: Literal["keep", "speedup", "max_drop"]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or (self.kind != "keep" and len(self.values) != 1):
            wanted = "numbers" if self.kind == "keep" else "one number"
            raise SettingsError(f"{self.kind} takes {wanted}, got {list(self.values)}", options=(self.kind,))
        for value in self.values:
            if self.kind == "keep":
                check_keep(value)
                if value == 1:
                    raise SettingsError("keep 1 prunes nothing, so there is nothing to choose", options=("keep",))
            elif self.kind == "speedup" and not 1 < value < math.inf:
                raise SettingsError(f"speedup must be a number above 1, got {value!r}", options=("speedup",))
            elif self.kind == "max_drop" and not 0 <= value < 1:
                raise SettingsError(f"max_drop must be a share from 0 to below 1, got {value!r}", options=("max_drop",))

    def __str__(self) -> str:
        if self.kind == "keep":
            return "keep " + ", ".join(f"{value:g}" for value in self.values)
        if self.kind == "speedup":
            return f"a prefill {self.values[0]:g} times as fast, by operations"
        return f"at most {100 * self.values[0]:g} % of the answers changed"


def candidate_layers(legal: range, layers: int) -> tuple[int, ...]:
    """Layers that are tried of those at which a model of `layers` layers may be pruned: the paper's 4 among them."""
    wanted = {round(depth * layers) for depth in DEPTHS} | {PruningSettings().layer}
    chosen = tuple(layer for layer in sorted(wanted) if layer in legal and layer < max(2, layers - 1))
    return chosen or (legal[0],)


def default_settings(budget: Budget, layers: Sequence[int], cost: PrefillCost) -> PruningSettings:
    """The paper's settings at the budget: at its layer, or the nearest that is tried and can meet the budget."""
    settings = PruningSettings()
    pairs = budget_pairs(budget, layers, cost)
    layer, keep = min(pairs, key=lambda pair: (abs(pair[0] - settings.layer), abs(pair[1] - settings.keep)))
    return replace(settings, layer=layer, keep=keep)


def budget_pairs(budget: Budget, layers: Sequence[int], cost: PrefillCost) -> list[tuple[int, float]]:
    """(layer, keep ratio) that meet the budget; of several keep ratios the first one stands for all.

    Raises:
        SettingsError: no layer gives the speed-up.
    """
    if budget.kind == "keep":
        return [(layer, budget.values[0]) for layer in layers]
    if budget.kind == "max_drop":
        return [(layer, keep) for layer in layers for keep in LADDER]
    speedup = budget.values[0]
    kept = {layer: cost.kept_for(layer, speedup) for layer in layers}
    pairs = [(layer, count / cost.visual) for layer, count in kept.items() if count is not None]
    if not pairs:
        most = max(cost.speedup(layer, 1) for layer in layers)
        raise SettingsError(
            f"no layer of {', '.join(map(str, layers))} makes the prefill {speedup:g} times as fast: with a single "
            f"visual token left it is {most:.2f}; ask for less",
            options=("speedup",),
        )
    return pairs


def candidates(budget: Budget, layers: Sequence[int], cost: PrefillCost) -> list[PruningSettings]:
    """Every setting that is tried, the same ones at each layer."""
    pairs = budget_pairs(budget, layers, cost)
    return [
        PruningSettings(layer=layer, keep=keep).with_changes(**changes) for layer, keep in pairs for changes in VARIANTS
    ]


def controls_of(settings: PruningSettings) -> list[PruningSettings]:
    """Random and grid at a setting's layer and keep ratio."""
    plain = PruningSettings(layer=settings.layer, keep=settings.keep)
    return [plain.with_changes(importance=control) for control in CONTROLS]
