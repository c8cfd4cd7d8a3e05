"""Rival methods choose as many tokens as asked, by the criterion that they stand for."""

from __future__ import annotations

import pytest
import torch

from iwp_export.pruning.settings import PruningSettings
from iwp_export.validate.rivals import choose_diverse, choose_grid, methods
from tests.pruning.cases import random_case


@pytest.mark.parametrize("name", methods(PruningSettings()))
@pytest.mark.parametrize("budget", [1, 8, 15, 64])
def test_every_method_keeps_the_text_and_the_budget(name: str, budget: int) -> None:
    case = random_case(0, 64)
    feeds = {key: torch.from_numpy(array) for key, array in case.feeds(budget).items()}
    select = methods(PruningSettings())[name].select(torch.randn(64, 12))
    kept = select(*feeds.values())[0]
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert len(kept) == budget + case.num_text
    assert set((~feeds["is_visual"][0]).nonzero()[:, 0].tolist()) <= set(kept.tolist())


def test_diverse_takes_one_of_each_cluster_first() -> None:
    centres = torch.eye(4)
    features = centres.repeat_interleave(5, 0) + 0.01 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    assert sorted(int(i) // 5 for i in choose_diverse(features, 4)) == [0, 1, 2, 3]


def test_grid_is_spread_and_distinct() -> None:
    for count in (4, 7, 8, 15, 23, 32):
        chosen = choose_grid(torch.zeros(64, 1), count).tolist()
        assert len(set(chosen)) == count
        assert {i // 8 < 4 for i in chosen} == {True, False}


def test_grid_of_tokens_that_are_no_square() -> None:
    for number in (50, 2200):
        for count in (1, 15, number // 2):
            chosen = choose_grid(torch.zeros(number, 1), count).tolist()
            assert len(set(chosen)) == count
            assert all(0 <= index < number for index in chosen)


def test_random_draws_differ_between_seeds_only() -> None:
    features = torch.zeros(64, 1)
    first, again, other = (methods(PruningSettings(), seed)["random"].choose for seed in (0, 0, 1))
    assert first is not None and again is not None and other is not None
    a = first(features, 9).tolist()
    assert a == again(features, 9).tolist()
    assert a != other(features, 9).tolist()
