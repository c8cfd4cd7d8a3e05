"""Successive halving: all settings meet a few samples, the better ones more, and the best of those all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from iwp_export.bundle.recipe import Objective
from iwp_export.calibrator.candidates import Budget, controls_of
from iwp_export.calibrator.measurements import Measurements
from iwp_export.pruning.settings import PruningSettings
from iwp_export.view.figures import standard_error

RUNGS = (8, 24, 96)
SURVIVORS = (4, 3)
"""After the first rung one setting in four goes on, after the second one in three of those."""
NEGLIGIBLE_KL = 0.01
"""Nats a token that are no difference, however sure: they shift a token's probability by a hundredth or so."""
FEWEST = 4
"""Settings that go on at least."""
PER_COST = 3
"""Settings of each layer and keep ratio that go on before others where the cost is what is searched for."""


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        chosen: the setting.
        tried: every setting that was tried, with the default.
        controls: random and grid, at the layers and keep ratios of the choice and of the default.
        feasible: whether the choice meets the budget; only a drop can be missed.
    """

    chosen: PruningSettings
    tried: tuple[PruningSettings, ...]
    controls: tuple[PruningSettings, ...]
    feasible: bool


def rungs_for(samples: int, most: int = RUNGS[-1]) -> tuple[int, ...]:
    """Samples of each rung where there are `samples` of them and at most `most` are wanted."""
    last = min(samples, most)
    return (*(rung for rung in RUNGS if rung < last), last)


def survivors(alive: int, rung: int) -> int:
    """How many of `alive` settings go on after the `rung`-th rung, from 0."""
    return max(FEWEST, math.ceil(alive / SURVIVORS[min(rung, len(SURVIVORS) - 1)]))


class Search:
    """A search among candidates.

    Args:
        measurements: runs and remembers.
        budget: what is searched for.
        objective: what settings are ranked by.
        default: the paper's settings at the budget; it stays to the end.
        speedup: of a setting's prefill, by operations.
        rungs: samples of each rung.
    """

    def __init__(
        self,
        measurements: Measurements,
        budget: Budget,
        objective: Objective,
        default: PruningSettings,
        speedup: Callable[[PruningSettings], float],
        rungs: Sequence[int],
    ) -> None:
        self._measured, self._budget, self._objective = measurements, budget, objective
        self._default, self._speedup, self._rungs = default, speedup, tuple(rungs)

    def run(self, candidates: Sequence[PruningSettings]) -> Found:
        """Search; the last rung also learns whether answers are right."""
        alive = list(dict.fromkeys([self._default, *candidates]))
        tried, last = tuple(alive), len(self._rungs) - 1
        for number, rung in enumerate(self._rungs):
            title = f"Round {number + 1} of {last + 1}: {len(alive)} settings on {rung} samples"
            with_answer = number == last or self._objective == "accuracy"
            self._measured.run(title, alive, rung, with_answer)
            if number < last:
                alive = self._survivors(alive, rung, survivors(len(alive), number))
        chosen, feasible = self._choose(alive)
        controls = dict.fromkeys([*controls_of(chosen), *controls_of(self._default)])
        self._measured.run("Random choice and an even grid", controls, self._rungs[-1], True)
        return Found(chosen, tried, tuple(controls), feasible)

    def _survivors(self, alive: Sequence[PruningSettings], rung: int, count: int) -> list[PruningSettings]:
        ranked = sorted(alive, key=lambda settings: self._mean(settings, rung))
        if self._budget.kind == "max_drop":
            ranked = self._fastest_first(ranked, rung)
        return list(dict.fromkeys([self._default, *ranked[:count]]))

    def _fastest_first(self, ranked: Sequence[PruningSettings], rung: int) -> list[PruningSettings]:
        """Of those that may still be within the drop the best of each cost, fastest first; then the second of each.

        So the fast ones that later turn out to drop too much do not push the slower ones out. Last come the others.
        """
        allowed = math.floor(self._budget.values[0] * rung) + 1
        taken: dict[float, list[PruningSettings]] = {}
        for settings in ranked:
            if self._measured.losses(settings, rung, "agreement").sum() <= allowed:
                taken.setdefault(self._speedup(settings), []).append(settings)
        of_each = [taken[speed][:PER_COST] for speed in sorted(taken, reverse=True)]
        in_turn = [settings for place in itertools.zip_longest(*of_each) for settings in place if settings is not None]
        return list(dict.fromkeys([*in_turn, *ranked]))

    def _choose(self, alive: Sequence[PruningSettings]) -> tuple[PruningSettings, bool]:
        """Of those within one standard error of the best, or as good as it: the default, else the fastest."""
        count = self._rungs[-1]
        if self._budget.kind == "max_drop":
            allowed = self._budget.values[0]
            within = [s for s in alive if self._measured.losses(s, count, "agreement").mean() <= allowed + 1e-9]
            if within:
                return min(within, key=lambda settings: (-self._speedup(settings), self._mean(settings, count))), True
            return min(alive, key=lambda s: self._measured.losses(s, count, "agreement").mean()), False
        losses = {settings: self._measured.losses(settings, count, self._objective) for settings in alive}
        best = min(losses, key=lambda settings: float(losses[settings].mean()))
        negligible = NEGLIGIBLE_KL if self._objective == "kl" else 0.0
        ties = [s for s in alive if _is_tie(losses[s] - losses[best], negligible)]
        if self._default in ties:
            return self._default, True
        return min(ties, key=lambda settings: (-self._speedup(settings), float(losses[settings].mean()))), True

    def _mean(self, settings: PruningSettings, count: int) -> float:
        return float(self._measured.losses(settings, count, self._objective).mean())


def _is_tie(differences: np.ndarray, negligible: float) -> bool:
    """Whether a mean difference on the same samples is within its standard error, or too small to matter."""
    return float(differences.mean()) <= max(standard_error(differences), negligible)
