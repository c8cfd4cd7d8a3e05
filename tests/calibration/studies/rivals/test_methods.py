"""Methods keep as many tokens as asked, say what they cannot do, and the simple ones choose as they should."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from calibration.studies.rivals import methods
from calibration.studies.rivals.controls import at_random, choose_grid
from iwp_export.pruning.settings import PruningSettings
from tests.calibration.studies.rivals.seen import layer, seen, tower
from tests.pruning.cases import random_case

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
    kept = methods(PruningSettings())[name].select(whole_view(visual))(*feeds.values())[0]
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
        chosen = choose_grid(seen(torch.zeros(64, 1)), count).tolist()
        assert len(set(chosen)) == count
        assert {i // 8 < 4 for i in chosen} == {True, False}


def test_grid_of_tokens_that_are_no_square() -> None:
    for number in (50, 2200):
        for count in (1, 15, number // 2):
            chosen = choose_grid(seen(torch.zeros(number, 1)), count).tolist()
            assert len(set(chosen)) == count
            assert all(0 <= index < number for index in chosen)


def test_random_draws_differ_between_seeds_only() -> None:
    view = seen(torch.zeros(64, 1))
    first, again, other = (at_random(seed)(view, 9).tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other
