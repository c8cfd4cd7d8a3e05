"""What is tried at which layers and budgets; halving finds the best at little cost, the paper's where that ties."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iwp_export.calibrator.measurements import Measurements
from iwp_export.calibrator.search import (
    LADDER,
    NEGLIGIBLE_KL,
    PER_COST,
    VARIANTS,
    Budget,
    Found,
    Search,
    budget_pairs,
    candidate_layers,
    candidates,
    controls_of,
    default_settings,
    rungs_for,
)
from iwp_export.errors import SettingsError
from iwp_export.pruning.cost import PrefillCost
from iwp_export.pruning.settings import CONTROLS, PruningSettings
from tests.calibrator.fake import FakeScores, Loss, questions

COST = PrefillCost(28, 1024, 2816, 1024, 1024, 32000, visual=576, text=40)
LAYERS = (2, 4, 7, 10)
KEEP = Budget("keep", (0.3,))
ALL = candidates(KEEP, LAYERS, COST)
DEFAULT = PruningSettings()
BLIND = PruningSettings(layer=0, keep=1e-4).with_changes(importance="random")
CONTROLS_OF_ALL = {control for settings in ALL for control in controls_of(settings)}


MANY = (2, 4, 7, 10, 14)


def speedup(settings: PruningSettings) -> float:
    return COST.speedup(settings.layer, settings.num_keep(COST.visual))


def search(
    loss: Loss, samples: int = 96, tried=ALL, budget: Budget = KEEP, objective="kl", default=DEFAULT, **more
) -> tuple[Found, Measurements, FakeScores]:
    scores = FakeScores(loss, **more)
    measured = Measurements(scores, questions(samples), budget.values if budget.kind == "keep" else ())
    found = Search(measured, budget, objective, tried, default, BLIND, speedup, rungs_for(samples)).run()
    return found, measured, scores


def noisy(seed: int, spread: float = 0.3) -> Loss:
    """A quality for each setting, and a deviation for each sample."""
    quality = {one: random.Random(f"{seed} {one}").random() * 2 for one in ALL}

    def loss(settings: PruningSettings, sample: int) -> float:
        return quality.get(settings, 1.9) + spread * random.Random(f"{seed} {settings} {sample}").random()

    return loss


def test_rungs():
    cases = {1: (1,), 8: (8,), 9: (8, 9), 24: (8, 24), 95: (8, 24, 95), 96: (8, 24, 96), 500: (8, 24, 96, 384, 500)}
    assert {samples: rungs_for(samples) for samples in cases} == cases


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("objective", ["kl", "agreement", "accuracy"])
def test_it_finds_the_best_and_keeps_the_default_to_the_end(seed, objective):
    best = ALL[7 * seed + 3]

    def loss(settings: PruningSettings, sample: int) -> float:
        share = 0.1 if settings == best else 0.9 if settings == DEFAULT else 0.5
        changed = random.Random(f"{seed} {settings} {sample}").random() < share
        return 2.0 if changed else 0.5

    found, measured, _ = search(loss, objective=objective)
    assert found.chosen == best
    assert measured.met(DEFAULT) == measured.met(best) == 96
    assert set(found.controls) == {*controls_of(best), *controls_of(DEFAULT, 1)}
    assert found.tried == tuple(dict.fromkeys([DEFAULT, *ALL]))
    assert all(measured.has_answers(each, 96) for each in (DEFAULT, best, *found.controls))


def test_the_runs_are_less_than_a_quarter():
    assert len(ALL) == 56
    for seed in range(5):
        found, measured, scores = search(noisy(seed))
        everything = (len(ALL) + len(CONTROLS_OF_ALL)) * 96
        assert set(scores.scored.values()) == {1} and set(found.controls) <= CONTROLS_OF_ALL
        assert measured.runs == scores.scored.total() < everything / 4


@pytest.mark.parametrize("seed", range(3))
def test_the_same_seed_gives_the_same(seed):
    (one, first, _), (two, second, _) = (search(noisy(seed)) for _ in range(2))
    assert replace(one, search=two.search) == two and first.runs == second.runs


@pytest.mark.parametrize("samples", [1, 2, 7, 8, 23])
def test_few_samples(samples):
    best = ALL[20]
    found, measured, _ = search(lambda settings, sample: 0.1 if settings == best else 0.9, samples)
    assert found.chosen == best
    assert measured.met(best) == measured.met(DEFAULT) == samples
    assert min(measured.met(each) for each in ALL) == min(8, samples)


def at(losses: dict[PruningSettings, float], spread: float = 0.0) -> Loss:
    """Losses by setting, others far worse; all but the first one's are `spread` more and less in turn."""
    first = next(iter(losses))

    def loss(settings: PruningSettings, sample: int) -> float:
        return losses.get(settings, 5.0) + (0 if settings == first else spread * (-1) ** sample)

    return loss


def test_a_tie_goes_to_the_papers_settings_then_to_the_faster():
    best, faster = (
        one for one in ALL if one.select == "coverage" and one.similarity == "value" and one.layer in (2, 7)
    )
    best, faster = sorted((best, faster), key=lambda one: -one.layer)
    for spread, negligible in ((1.0, 0.05), (0.0, NEGLIGIBLE_KL / 2)):
        tied = {best: 0.5, faster: 0.5 + negligible, DEFAULT: 0.5 + negligible}
        assert search(at(tied, spread))[0].chosen == DEFAULT
        del tied[DEFAULT]
        assert search(at(tied, spread))[0].chosen == faster
    clear = {best: 0.5, faster: 0.52, DEFAULT: 0.52}
    assert search(at(clear))[0].chosen == best


DROP = Budget("max_drop", (0.05,))
STEPS = candidates(DROP, LAYERS, COST)
NEAR_PAPER = default_settings(DROP, LAYERS, COST)


def test_the_fastest_within_the_drop():
    """Also where all that is faster drops too much, which shows on the last samples alone."""
    best = sorted(STEPS, key=speedup)[len(STEPS) // 2]

    def loss(settings: PruningSettings, sample: int) -> float:
        slow = speedup(settings) <= speedup(best)
        return 3.0 if sample % (24 if slow else 10) == 5 else 0.5 if settings == best else 0.8 if slow else 0.1

    found, measured, _ = search(loss, tried=STEPS, budget=DROP, default=NEAR_PAPER)
    assert found.search.drop(best).holds and found.chosen == best
    assert measured.losses(found.chosen, range(96), "agreement").mean() == pytest.approx(1 / 24)


def test_nothing_within_the_drop():
    nearest = STEPS[30]
    found, measured, _ = search(
        lambda settings, sample: 2.0 if sample % 3 or settings != nearest else 0.1,
        tried=STEPS,
        budget=DROP,
        default=NEAR_PAPER,
    )
    assert not found.search.drop(nearest).holds and found.chosen == nearest
    assert measured.losses(nearest, range(96), "agreement").mean() == pytest.approx(2 / 3, abs=0.01)


def test_the_best_of_each_cost_goes_to_the_end_where_cost_is_searched_for():
    _, measured, _ = search(lambda settings, sample: 0.1, tried=STEPS, budget=DROP, default=NEAR_PAPER)
    for speed in set(map(speedup, STEPS)):
        met = [measured.met(one) for one in STEPS if speedup(one) == speed]
        assert max(met) == 96 and sum(count > 8 for count in met) >= PER_COST


@given(st.integers(0, 10**6), st.integers(1, 30), st.sampled_from(["kl", "agreement", "accuracy"]), st.booleans())
def test_any_search_ends_with_a_candidate_that_met_every_sample(seed, samples, objective, by_drop):
    tried, budget = (STEPS[:20], DROP) if by_drop else (ALL[:20], KEEP)
    found, measured, _ = search(noisy(seed, 1.5), samples, tried, budget, objective, tried[0])
    assert found.chosen in tried and found.chosen.importance not in CONTROLS
    assert measured.met(found.chosen) == min(samples, 96)
    best = min(measured.losses(one, range(samples), objective).mean() for one in tried if measured.met(one) == samples)
    if not by_drop:
        spread = measured.losses(found.chosen, range(samples), objective).mean() - best
        assert spread <= 1.0 if samples > 1 else spread <= NEGLIGIBLE_KL


@pytest.mark.parametrize(
    ("layers", "legal", "tried"),
    [
        (1, None, (0,)),
        (2, None, (0, 1)),
        (3, None, (0, 1)),
        (8, None, (1, 2, 3, 4)),
        (28, None, (2, 4, 7, 10, 14)),
        (32, None, (2, 4, 5, 8, 11, 16)),
        (40, None, (3, 4, 6, 10, 14, 20)),
        (28, range(3, 28), (4, 7, 10, 14)),
        (28, range(20, 28), (20,)),
        (28, range(0, 2), (0,)),
        (8, range(4, 5), (4,)),
    ],
)
def test_layers(layers, legal, tried):
    assert candidate_layers(legal or range(layers), layers) == tried


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("keep", (), "keep takes one ratio or more"),
        ("keep", (1.0,), "prunes nothing"),
        ("speedup", (1.0,), "above 1"),
        ("max_drop", (0.0,), "above 0 and below 1"),
    ],
)
def test_budgets_out_of_range(kind, values, message):
    with pytest.raises(SettingsError, match=message) as refused:
        Budget(kind, values)
    assert "\n" not in str(refused.value)


def test_a_speedup_that_no_layer_gives():
    with pytest.raises(SettingsError, match=r"no layer of 10, 14 .* 9 times .* with a single visual token") as refused:
        candidates(Budget("speedup", (9.0,)), (10, 14), COST)
    assert refused.value.options == ("speedup",)


@pytest.mark.parametrize("speedup", [1.001, 1.5, 2.0, 3.0])
def test_every_candidate_of_a_speedup_gives_it(speedup):
    budget = Budget("speedup", (speedup,))
    tried = candidates(budget, MANY, COST)
    for settings in [*tried, default_settings(budget, MANY, COST)]:
        kept = settings.num_keep(COST.visual)
        assert COST.speedup(settings.layer, kept) >= speedup
        assert kept == COST.visual or COST.speedup(settings.layer, kept + 1) < speedup
    given = {layer for layer in MANY if COST.kept_for(layer, speedup) is not None}
    assert {settings.layer for settings in tried} == given and len(tried) == len(given) * len(VARIANTS)


def test_the_default_is_the_papers_at_the_budget():
    keep = Budget("keep", (0.2, 0.1))
    assert default_settings(keep, MANY, COST) == PruningSettings(keep=0.2)
    assert default_settings(keep, (1, 2), COST) == PruningSettings(layer=2, keep=0.2)
    assert default_settings(Budget("max_drop", (0.01,)), MANY, COST) == PruningSettings(keep=0.353)
    assert default_settings(keep, MANY, COST) in candidates(keep, MANY, COST)


def test_candidates_differ_and_none_is_a_control():
    for budget, pairs in (
        (Budget("keep", (0.3,)), len(MANY)),
        (Budget("max_drop", (0.01,)), len(MANY) * len(LADDER)),
    ):
        tried = candidates(budget, MANY, COST)
        assert len(set(tried)) == len(tried) == pairs * len(VARIANTS)
        assert len(budget_pairs(budget, MANY, COST)) == pairs
    *draws, grid = controls_of(PruningSettings(layer=7, keep=0.2, penalty=3.0, chunk=1))
    assert draws == [PruningSettings(layer=7, keep=0.2).with_changes(importance="random", draw=n) for n in range(5)]
    assert grid == PruningSettings(layer=7, keep=0.2, importance="grid", penalty=0.0)


def test_budgets_in_words():
    assert str(Budget("keep", (0.3, 0.111))) == "keep 0.3, 0.111"
    assert str(Budget("speedup", (1.5,))) == "a prefill 1.5 times as fast, by operations"
    assert str(Budget("max_drop", (0.01,))) == "at most 1.0 % of the unpruned score lost"
