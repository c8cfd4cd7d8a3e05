"""Each paper's rule on a few tokens, worked by hand; every method keeps the budget and says what it cannot do."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from calibration.studies import rivals
from calibration.studies.rivals import at_random, grid, methods
from iwp_export.errors import SettingsError
from iwp_export.pruning.settings import PruningSettings
from tests.calibration.studies.made_up import directions, layer, seen, tower
from tests.pruning.cases import random_case


def test_divprune_takes_the_farthest_of_the_nearest() -> None:
    """1 - cosine: the nearest neighbours of 0, 10, 100 and 220 degrees are 0.02, 0.02, 1.00 and 1.50 away: 3 is first.

    From 220 degrees the others are 1.77, 1.87 and 1.50 away: 1 is next. To the nearer of the two, 0 is 0.02 and 2 is
    1.00 away: 2 is next. Lengths do not matter.
    """
    features = directions(0, 10, 100, 220) * torch.tensor([[1.0], [9.0], [2.0], [0.5]])
    assert rivals.most_diverse(features, 3).tolist() == [3, 1, 2]
    assert rivals.divprune(seen(features), 2).tolist() == [3, 1]
    condensed = rivals.divprune_before(seen(features), 3)
    assert condensed.rows.tolist() == [1, 2, 3]
    assert condensed.features.equal(features[1:])


def test_divprune_of_equal_tokens_takes_the_first() -> None:
    assert rivals.most_diverse(torch.ones(5, 3), 3).tolist() == [0, 1, 2]


def test_cdpruner_relevance_is_normalised() -> None:
    """Cosines to the words at 0 and 0 degrees are 1, 0 and 0.7071: these are 1, 0 and 0.7071 of the range already."""
    relevance = rivals.relevance(directions(0, 90, 45) * 3, directions(0, 0))
    assert relevance.tolist() == pytest.approx([1, 0, math.sqrt(0.5)], abs=1e-5)
    assert rivals.relevance(torch.ones(3, 2), directions(10)).tolist() == [1, 1, 1]


def test_cdpruner_weighs_diversity_by_relevance() -> None:
    """Relevance 1, 0.9, 0.5 and directions 0, 0, 90: gains are 1, 0.81, 0.25, so 0 is first; 1 is its copy, 2 is next.

    With relevance 0.6, 1, 0.5 and directions 0, 45, 90: gains 0.36, 1, 0.25, so 1 is first. Half of the others'
    squares is explained by it (cosine^2 = 1/2): 0.18 and 0.125 are left, so 0 is next.
    """
    assert rivals.most_likely(directions(0, 0, 90), torch.tensor([1, 0.9, 0.5]), 3).tolist() == [0, 2, 1]
    assert rivals.most_likely(directions(0, 45, 90), torch.tensor([0.6, 1, 0.5]), 2).tolist() == [1, 0]


def test_cdpruner_goes_on_when_nothing_is_left_to_explain() -> None:
    assert sorted(rivals.most_likely(torch.ones(6, 3), torch.ones(6), 4).tolist()) == [0, 1, 2, 3]


def test_fastv_reads_the_layer_below_over_the_whole_sequence() -> None:
    """One token of an earlier call, then text, two visual tokens and the last; keys ln 4 | 0, ln 2, 0, 0.

    A head with query 1 weighs them 4 | 1, 2, 1, 1: the visual ones get 2/9 and 1/9. One with query -1 weighs them
    1/4 | 1, 1/2, 1, 1, of 3.75: 0.133 and 0.267. The means are 0.178 and 0.189: the second wins. Among the visual
    tokens alone the heads would be even, and the first would win.
    """
    keys = torch.tensor([0, math.log(2), 0, 0])[None, None, :, None]
    query = torch.zeros(1, 2, 4, 1)
    query[0, :, -1, 0] = torch.tensor([1.0, -1.0])
    below = layer(rotated_query=query, rotated_key=keys, past_key=torch.full((1, 1, 1, 1), math.log(4)))
    assert rivals.last_attention(below)[2:4].tolist() == pytest.approx([0.1778, 0.1889], abs=1e-4)
    visual = torch.tensor([False, True, True, False])
    assert rivals.fastv(seen(torch.zeros(2, 1), visual, below=below, at=layer()), 1).tolist() == [1]
    with pytest.raises(SettingsError, match="choose layer 1 or more"):
        rivals.fastv(seen(torch.zeros(2, 1), visual, at=layer()), 1)


def test_dart_takes_what_is_least_like_the_pivots() -> None:
    """Text, five visual tokens at 10, 0, 90, 100 and 170 degrees, and a text token at 100; one pivot of each kind.

    The second visual token (0 degrees) has the largest key and is a pivot; least like it is 170 degrees. Least like
    the text pivot, of the rest, is 10 degrees (cosine 0; the others 0.98 and 1). The text before the image has the
    largest key of all and is no pivot.
    """
    hidden = directions(55, 10, 0, 90, 100, 170, 100)
    size = torch.tensor([9.0, 1, 3, 2, 1, 1, 1])
    visual, text = torch.arange(1, 6), torch.tensor([6])
    assert rivals.least_duplicated(hidden, size, visual, text, 3, pivots=1).tolist() == [1, 4, 0]
    assert rivals.least_duplicated(hidden, size, visual, text, 1, pivots=4).tolist() == [1]


def test_dart_measures_keys_below_and_hidden_states_at_the_layer() -> None:
    """With a budget of up to four, the pivots are all: the visual tokens with the largest L1 norms over both heads.

    These are 7, 4, 0.5, 3 and 6. The second token's key is (1, 1) in each head, of L2 norm 2: by that the fourth, of
    norm 3, would come before it.
    """
    key = torch.zeros(1, 2, 6, 2)
    key[0, :, :, 0] = torch.tensor([[7, 1, 0.5, 3, 6, 5], [0, 1, 0, 0, 0, 0]])
    key[0, :, 1, 1] = 1
    visual = torch.tensor([True] * 5 + [False])
    see = seen(torch.zeros(5, 1), visual, below=layer(rotated_key=key), at=layer(hidden=torch.ones(1, 6, 2)))
    assert sorted(rivals.dart(see, 4).tolist()) == [0, 1, 3, 4]
    assert sorted(rivals.dart(see, 3).tolist()) == [0, 1, 4]


def test_pact_weighs_global_attention_by_the_hidden_norm() -> None:
    """The mean of the visual queries 2, 1 and 0 is 1; keys ln 4, ln 2 and 0 get 4/7, 2/7 and 1/7 of the attention.

    Times the norms 1, 3 and 5 of the hidden states: 4/7, 6/7 and 5/7. Text takes no part.
    """
    query = torch.tensor([50, 2, 1, 0])[None, None, :, None].float()
    key = torch.tensor([50, math.log(4), math.log(2), 0])[None, None, :, None]
    hidden = torch.tensor([[9.0, 9], [1, 0], [0, 3], [3, 4]])[None]
    visual = torch.tensor([False, True, True, True])
    see = seen(torch.zeros(3, 1), visual, at=layer(hidden=hidden, query=query, key=key))
    scores = rivals.global_importance(hidden[0, 1:], query[0, :, 1:], key[0, :, 1:])
    assert scores.tolist() == pytest.approx([4 / 7, 6 / 7, 5 / 7])
    assert rivals.pact(see, 2).tolist() == [1, 2]


def test_visionzip_merges_into_evenly_spaced_targets() -> None:
    """Two of five: every second is a target, 0 and 2. Keys of 1 are like 0's, those of 3 and 4 like 2's.

    10 + 1, and 20 + the mean of 3 and 5.
    """
    hidden = torch.tensor([[10.0], [1], [20], [3], [5]])
    merged, targets = rivals.merge(hidden, directions(0, 20, 90, 80, 100), 2)
    assert merged[:, 0].tolist() == [11, 24]
    assert targets.tolist() == [0, 2]


def test_visionzip_takes_the_class_token_the_dominant_and_the_merged() -> None:
    """Four of six: 10/64 of 4 rounds to one merged token, so class token and two dominant patches, 4 and 1.

    The rest is 0, 2, 3 and 5 with hidden states 1, 3, 4 and 6: all merge into the first, 1 + 13 / 3.
    """
    hidden = torch.tensor([[100.0], [1], [2], [3], [4], [5], [6]])
    query = torch.full((1, 7, 1), 1.0)
    key = torch.tensor([0.0, 0.1, 2, 0.2, 0.3, 3, 0.4])[None, :, None]
    see = seen(torch.zeros(6, 1), towers=lambda: (tower(hidden, query, key),))
    condensed = rivals.visionzip_before(see, 4)
    assert condensed.features[:, 0].tolist() == pytest.approx([1000, 20, 50, 10 * (1 + 13 / 3)])
    assert condensed.rows.tolist() == [0, 1, 4]
    assert rivals.visionzip(see, 3).tolist() == [4, 1, 5]
    assert rivals.visionzip_before(see, 1).features.tolist() == [[1000]]


AT_LAYER = [name for name, method in methods(PruningSettings()).items() if method.condense is None]
BEFORE = [name for name, method in methods(PruningSettings()).items() if method.condense]


def whole_view(visual: torch.Tensor) -> Any:
    """Random values of everything that can be seen of a call with 64 visual tokens."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tokens = len(visual)
    query, key = random(1, 4, tokens, 8), random(1, 2, tokens, 8)
    both = layer(
        hidden=random(1, tokens, 12), query=query, key=key, rotated_query=query, rotated_key=key, past_key=key[:, :, :0]
    )
    looked = tower(random(65, 6), random(2, 65, 3), random(2, 65, 3))
    return seen(random(64, 12), visual, words=random(3, 12), towers=lambda: (looked,), below=both, at=both)


@pytest.mark.parametrize("name", AT_LAYER)
@pytest.mark.parametrize("budget", [1, 8, 15, 64])
def test_every_method_keeps_the_text_and_the_budget(name: str, budget: int) -> None:
    case = random_case(0, 64)
    feeds = {key: torch.from_numpy(array) for key, array in case.feeds(budget).items()}
    visual = feeds["is_visual"][0]
    kept = methods(PruningSettings())[name].kept(whole_view(visual), *feeds.values())[0]
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert len(kept) == budget + case.num_text
    assert set((~visual).nonzero()[:, 0].tolist()) <= set(kept.tolist())


@pytest.mark.parametrize("name", BEFORE)
@pytest.mark.parametrize("budget", [1, 8, 15, 63])
def test_methods_before_layer_0_condense_to_the_budget(name: str, budget: int) -> None:
    condense = methods(PruningSettings())[name].condense
    assert condense is not None
    condensed = condense(whole_view(torch.ones(64, dtype=torch.bool)), budget)
    rows = condensed.rows.tolist()
    assert len(condensed.features) == budget
    assert rows == sorted(set(rows))
    assert len(rows) == budget - name.startswith("visionzip")  # its class token is no patch


def model(model_type: str = "llava", tower: str = "clip_vision_model", layers: int = -2) -> Any:
    vision = SimpleNamespace(model_type=tower, num_hidden_layers=4)
    config = SimpleNamespace(model_type=model_type, vision_config=vision, vision_feature_layer=layers)
    return SimpleNamespace(config=config)


@pytest.mark.parametrize("name", ["visionzip before layer 0", "visionzip (dominant tokens alone)"])
@pytest.mark.parametrize(
    ("unfit", "reason"),
    [
        (model(tower="siglip_vision_model"), "a class token, siglip_vision_model has none"),
        (model("llava_next"), "one square image, llava_next has other"),
        (model(layers=-5), "the embeddings before the first"),
    ],
)
def test_a_model_without_a_class_token_is_refused_in_one_line(name: str, unfit: Any, reason: str) -> None:
    found = methods(PruningSettings())[name].refusal(unfit)
    assert found is not None
    assert reason in found
    assert "\n" not in found
    assert methods(PruningSettings())[name].refusal(model()) is None


def test_methods_of_the_layer_below_are_refused_at_layer_0() -> None:
    at_0 = {name for name, method in methods(PruningSettings(layer=0)).items() if method.refusal(model())}
    assert at_0 == {"fastv", "dart"}


def test_grid_is_spread_and_distinct() -> None:
    for count in (4, 7, 8, 15, 23, 32):
        chosen = grid(seen(torch.zeros(64, 1)), count).tolist()
        assert len(set(chosen)) == count
        assert {i // 8 < 4 for i in chosen} == {True, False}


def test_grid_of_tokens_that_are_no_square() -> None:
    for number in (50, 2200):
        for count in (1, 15, number // 2):
            chosen = grid(seen(torch.zeros(number, 1)), count).tolist()
            assert len(set(chosen)) == count
            assert all(0 <= index < number for index in chosen)


def test_random_draws_differ_between_seeds_only() -> None:
    view = seen(torch.zeros(64, 1))
    first, again, other = (at_random(seed)(view, 9).tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other
