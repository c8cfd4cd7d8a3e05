"""What a calibration tries, and in what order: all settings meet a few samples, the better ones more, the best all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from iwp_export.accuracy.scoring import Drop, check_drop, check_limit
from iwp_export.bundle.recipe import Objective
from iwp_export.calibrator.measurements import Measurements
from iwp_export.errors import SettingsError
from iwp_export.pruning.cost import PrefillCost
from iwp_export.pruning.settings import PruningSettings
from iwp_export.view.figures import Interval, percent, share_of, standard_error

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

DRAWS = 5
"""Of random: on tiny-llava five draws keep 33 to 52 % of the answers at keep 0.11, so that one says little."""

DEPTHS = (2 / 28, 4 / 28, 7 / 28, 10 / 28, 14 / 28)
"""Layers that are tried, as shares of the model's: the paper tries 0 to 10 of 28. Beyond the middle little is saved."""

LADDER = (0.5, 0.353, 0.222, 0.111)
"""Keep ratios that are tried where the budget leaves them open: the paper's, and a half."""


@dataclass(frozen=True)
class Budget:
    """What a calibration may spend.

    Attributes:
        kind: `keep`: these keep ratios; `speedup`: layers and keep ratios with this speed-up of the prefill, by
            operations; `max_drop`: the fastest that loses at most this share of the unpruned score, see `check_drop`.
        values: keep ratios, or one number.
    """

    kind: Literal["keep", "speedup", "max_drop"]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise SettingsError("keep takes one ratio or more, got none", options=("keep",))
        if self.kind == "keep" and 1 in self.values:
            raise SettingsError("keep 1 prunes nothing, so there is nothing to choose", options=("keep",))
        if self.kind == "speedup" and not 1 < self.values[0] < math.inf:
            raise SettingsError(f"speedup must be a number above 1, got {self.values[0]!r}", options=("speedup",))
        if self.kind == "max_drop":
            check_limit(self.kind, self.values[0])

    def __str__(self) -> str:
        if self.kind == "keep":
            return "keep " + ", ".join(f"{value:g}" for value in self.values)
        if self.kind == "speedup":
            return f"a prefill {self.values[0]:g} times as fast, by operations"
        return f"at most {percent(self.values[0])} of the unpruned score lost"


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


def controls_of(settings: PruningSettings, draws: int = DRAWS) -> list[PruningSettings]:
    """Draws of random, and grid, at a setting's layer and keep ratio."""
    plain = PruningSettings(layer=settings.layer, keep=settings.keep)
    random = [plain.with_changes(importance="random", draw=draw) for draw in range(draws)]
    return [*random, plain.with_changes(importance="grid")]


RUNGS = (8, 24)
GROWTH = 4
"""Samples of each round: 8, 24, 96, 384, ... and in the last one all."""
SURVIVORS = (4, 3)
"""After the first round one setting in four goes on, after each later one one in three."""
NEGLIGIBLE_KL = 0.01
"""Nats a token that are no difference, however sure: they shift a token's probability by a hundredth or so."""
FEWEST = 4
"""Settings that go on at least."""
BLIND_SAMPLES = 24
"""Samples at most on which the setting that leaves one visual token is measured."""
PER_COST = 3
"""Settings of each layer and keep ratio that go on before others where the cost is what is searched for."""


def rungs_for(samples: int) -> tuple[int, ...]:
    """Samples of each round where there are `samples` of them: all of them in the last."""
    rungs = list(RUNGS)
    while rungs[-1] * GROWTH < samples:
        rungs.append(rungs[-1] * GROWTH)
    return (*(rung for rung in rungs if rung < samples), samples)


@dataclass(frozen=True)
class Search:
    """A search among candidates by successive halving.

    Attributes:
        measured: runs and remembers.
        budget: what is searched for.
        objective: what settings are ranked by.
        candidates: what is tried beside the default.
        default: the paper's settings at the budget; it stays to the end.
        blind: a setting that leaves one visual token.
        speedup: of a setting's prefill, by operations.
        rungs: samples of each round; those after the last one's are held out, to judge the choice by.
    """

    measured: Measurements
    budget: Budget
    objective: Objective
    candidates: Sequence[PruningSettings]
    default: PruningSettings
    blind: PruningSettings
    speedup: Callable[[PruningSettings], float]
    rungs: Sequence[int]

    @property
    def count(self) -> int:
        """Samples of the search."""
        return self.rungs[-1]

    def run(self) -> Found:
        """Search; the last round also learns whether answers are right."""
        alive = list(dict.fromkeys([self.default, *self.candidates]))
        tried, last = tuple(alive), len(self.rungs) - 1
        for number, rung in enumerate(self.rungs):
            title = f"Round {number + 1} of {last + 1}: {len(alive)} settings on {rung} samples"
            with_answer = number == last or self.objective == "accuracy" or self.budget.kind == "max_drop"
            self.measured.run(title, alive, rung, with_answer)
            if number < last:
                share = SURVIVORS[min(number, len(SURVIVORS) - 1)]
                alive = self._survivors(alive, rung, max(FEWEST, math.ceil(len(alive) / share)))
        chosen = self._choose(alive)
        controls = list(dict.fromkeys([*controls_of(chosen), *controls_of(self.default, 1)]))
        self.measured.run("Random choice and an even grid", controls, self.count, True)
        self.measured.run("One visual token", [self.blind], min(self.count, BLIND_SAMPLES))
        runs = self.measured.runs
        self.measured.run("Held-out samples", [chosen, self.default, *controls[:DRAWS]], len(self.measured.samples))
        return Found(self, chosen, tried, tuple(controls), runs)

    def drop(self, settings: PruningSettings) -> Drop:
        """What a setting costs on all samples of the search, as `validate --max-drop` sees it."""
        unpruned = self.measured.unpruned(self.count)
        before = [float(bool(each.right)) for each in unpruned] if self.measured.answers else None
        return check_drop(before, (1 - self._lost(settings, self.count)).tolist(), self.budget.values[0])

    def _lost(self, settings: PruningSettings, count: int) -> np.ndarray:
        """1 where an answer is wrong or, in data without right answers, changed."""
        return self.measured.losses(settings, range(count), "accuracy" if self.measured.answers else "agreement")

    def _survivors(self, alive: Sequence[PruningSettings], rung: int, count: int) -> list[PruningSettings]:
        ranked = sorted(alive, key=lambda settings: self._mean(settings, rung))
        if self.budget.kind == "max_drop":
            ranked = self._fastest_first(ranked, rung)
        return list(dict.fromkeys([self.default, *ranked[:count]]))

    def _fastest_first(self, ranked: Sequence[PruningSettings], rung: int) -> list[PruningSettings]:
        """Of those that may still be within the drop the best of each cost, fastest first; then the second of each.

        So the fast ones that later turn out to drop too much do not push the slower ones out. Last come the others.
        """
        wrong = sum(not each.right for each in self.measured.unpruned(rung)) if self.measured.answers else 0
        allowed = wrong + math.floor(self.budget.values[0] * (rung - wrong)) + 1
        taken: dict[float, list[PruningSettings]] = {}
        for settings in ranked:
            if self._lost(settings, rung).sum() <= allowed:
                taken.setdefault(self.speedup(settings), []).append(settings)
        of_each = [taken[speed][:PER_COST] for speed in sorted(taken, reverse=True)]
        in_turn = [settings for place in itertools.zip_longest(*of_each) for settings in place if settings is not None]
        return list(dict.fromkeys([*in_turn, *ranked]))

    def _choose(self, alive: Sequence[PruningSettings]) -> PruningSettings:
        """Of those within one standard error of the best, or as good as it: the default, else the fastest."""
        if self.budget.kind == "max_drop":
            return self._fastest_within(alive)
        losses = {each: self.measured.losses(each, range(self.count), self.objective) for each in alive}
        best = min(losses.values(), key=lambda values: float(values.mean()))
        negligible = NEGLIGIBLE_KL if self.objective == "kl" else 0.0
        ties = [each for each in alive if _is_tie(losses[each] - best, negligible)]
        return self.default if self.default in ties else self._fastest(ties)

    def _fastest_within(self, alive: Sequence[PruningSettings]) -> PruningSettings:
        """The fastest that is shown to be within the drop; if none is, that seems to be; or else the nearest."""
        drops = {settings: self.drop(settings) for settings in alive}
        within = [s for s in alive if drops[s].passed] or [s for s in alive if drops[s].holds]
        left = {s: -1.0 if drop.relative is None else drop.relative.mean for s, drop in drops.items()}
        return self._fastest(within) if within else max(alive, key=lambda settings: left[settings])

    def _fastest(self, these: Sequence[PruningSettings]) -> PruningSettings:
        return min(these, key=lambda settings: (-self.speedup(settings), self._mean(settings, self.count)))

    def _mean(self, settings: PruningSettings, count: int) -> float:
        return float(self.measured.losses(settings, range(count), self.objective).mean())


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        search: with all that was measured.
        chosen: the setting.
        tried: every setting that was tried, with the default.
        controls: draws of random, then grid, at the layers and keep ratios of the choice and of the default.
        runs: pairs of a setting and a sample that were run to choose.
    """

    search: Search
    chosen: PruningSettings
    tried: tuple[PruningSettings, ...]
    controls: tuple[PruningSettings, ...]
    runs: int

    @property
    def held_out(self) -> range:
        """Numbers of the samples that took no part in the search."""
        return range(self.search.count, len(self.search.measured.samples))

    def losses(self, settings: PruningSettings, objective: Objective) -> np.ndarray:
        """Of each held-out sample, or of the search's if none is held out; see `Measurements.losses`."""
        return self.search.measured.losses(settings, self.held_out or range(self.search.count), objective)

    def random_losses(self, objective: Objective) -> np.ndarray:
        """Of each of these samples by random tokens at the choice's place: the mean of the draws."""
        means: np.ndarray = np.stack([self.losses(each, objective) for each in self.controls[:DRAWS]]).mean(0)
        return means

    def kept(self, settings: PruningSettings) -> Interval:
        """Share of answers that stay the unpruned model's, on the same samples."""
        return share_of((1 - self.losses(settings, "agreement")).tolist())


def _is_tie(differences: np.ndarray, negligible: float) -> bool:
    """Whether a mean difference on the same samples is within its standard error, or too small to matter."""
    return float(differences.mean()) <= max(standard_error(differences), negligible)
