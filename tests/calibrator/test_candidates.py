"""What is tried: layers of small and large models, budgets that cost a line, speed-ups that a layer can give."""

from __future__ import annotations

import pytest

from iwp_export.calibrator.candidates import (
    LADDER,
    VARIANTS,
    Budget,
    budget_pairs,
    candidate_layers,
    candidates,
    controls_of,
    default_settings,
)
from iwp_export.errors import SettingsError
from iwp_export.pruning.cost import PrefillCost
from iwp_export.pruning.settings import PruningSettings

COST = PrefillCost(28, 1024, 2816, 1024, 1024, 32000, visual=576, text=40)
LAYERS = (2, 4, 7, 10, 14)


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
        ("keep", (), "keep takes numbers"),
        ("keep", (0.0,), "keep must be a number above 0"),
        ("keep", (0.3, 1.5), "keep must be a number above 0"),
        ("keep", (float("nan"),), "keep must be a number above 0"),
        ("keep", (1.0,), "prunes nothing"),
        ("speedup", (), "speedup takes one number"),
        ("speedup", (1.5, 2.0), "speedup takes one number"),
        ("speedup", (1.0,), "above 1"),
        ("speedup", (float("inf"),), "above 1"),
        ("speedup", (float("nan"),), "above 1"),
        ("max_drop", (-0.1,), "from 0 to below 1"),
        ("max_drop", (1.0,), "from 0 to below 1"),
        ("max_drop", (float("nan"),), "from 0 to below 1"),
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
    tried = candidates(budget, LAYERS, COST)
    for settings in [*tried, default_settings(budget, LAYERS, COST)]:
        kept = settings.num_keep(COST.visual)
        assert COST.speedup(settings.layer, kept) >= speedup
        assert kept == COST.visual or COST.speedup(settings.layer, kept + 1) < speedup
    given = {layer for layer in LAYERS if COST.kept_for(layer, speedup) is not None}
    assert {settings.layer for settings in tried} == given and len(tried) == len(given) * len(VARIANTS)


def test_the_default_is_the_papers_at_the_budget():
    keep = Budget("keep", (0.2, 0.1))
    assert default_settings(keep, LAYERS, COST) == PruningSettings(keep=0.2)
    assert default_settings(keep, (1, 2), COST) == PruningSettings(layer=2, keep=0.2)
    assert default_settings(Budget("max_drop", (0.01,)), LAYERS, COST) == PruningSettings(keep=0.353)
    assert default_settings(keep, LAYERS, COST) in candidates(keep, LAYERS, COST)


def test_candidates_differ_and_none_is_a_control():
    for budget, pairs in (
        (Budget("keep", (0.3,)), len(LAYERS)),
        (Budget("max_drop", (0.0,)), len(LAYERS) * len(LADDER)),
    ):
        tried = candidates(budget, LAYERS, COST)
        assert len(set(tried)) == len(tried) == pairs * len(VARIANTS)
        assert len(budget_pairs(budget, LAYERS, COST)) == pairs
    random, grid = controls_of(PruningSettings(layer=7, keep=0.2, penalty=3.0, chunk=1))
    assert random == PruningSettings(layer=7, keep=0.2).with_changes(importance="random")
    assert grid == PruningSettings(layer=7, keep=0.2, importance="grid", penalty=0.0)


def test_budgets_in_words():
    assert str(Budget("keep", (0.3, 0.111))) == "keep 0.3, 0.111"
    assert str(Budget("speedup", (1.5,))) == "a prefill 1.5 times as fast, by operations"
    assert str(Budget("max_drop", (0.01,))) == "at most 1 % of the answers changed"
