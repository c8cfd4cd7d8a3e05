"""Choosing tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from iwp_export.errors import BackendError, RequestError
from iwp_export.runtime.sampling import greedy, make_chooser

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15], np.float32))


def draws(count: int = 4000, **options: Any) -> np.ndarray[Any, Any]:
    choose = make_chooser(**{"temperature": 1.0, "seed": 0, **options})
    return np.bincount([choose(LOGITS) for _ in range(count)], minlength=5) / count


def test_greedy_takes_the_first_of_equal_logits() -> None:
    assert greedy(np.array([1, 3, 3, 2], np.float32)) == 1
    assert make_chooser()(LOGITS) == 1


@pytest.mark.parametrize("logits", [[0, np.nan], [np.inf, 0], [-np.inf, -np.inf]])
def test_logits_that_are_not_finite_are_an_error(logits: list[float]) -> None:
    with pytest.raises(BackendError, match="not finite"):
        greedy(np.array(logits, np.float32))


def test_masked_logits_are_no_error() -> None:
    masked = np.array([-np.inf, 1, -np.inf], np.float32)
    assert greedy(masked) == make_chooser(temperature=1, seed=1)(masked) == 1


def test_draws_follow_the_probabilities() -> None:
    np.testing.assert_allclose(draws(), np.exp(LOGITS), atol=0.03)
    flat = draws(temperature=100.0)
    np.testing.assert_allclose(flat, 0.2, atol=0.03)
    assert draws(temperature=1e-3)[1] == 1


def test_top_k() -> None:
    np.testing.assert_allclose(draws(top_k=2), [0, 4 / 7, 0, 3 / 7, 0], atol=0.03)
    assert draws(top_k=1)[1] == 1
    np.testing.assert_allclose(draws(top_k=100), np.exp(LOGITS), atol=0.03)


def test_top_p_keeps_the_token_that_reaches_the_sum() -> None:
    np.testing.assert_allclose(draws(top_p=0.5), [0, 4 / 7, 0, 3 / 7, 0], atol=0.03)
    assert draws(top_p=0.3)[1] == 1
    np.testing.assert_allclose(draws(top_p=1.0), np.exp(LOGITS), atol=0.03)


def test_top_k_comes_before_top_p() -> None:
    # Of the two most likely tokens the first has 4/7 of the probability, so top_p = 0.5 leaves it alone.
    assert draws(top_k=2, top_p=0.5)[1] == 1


def test_a_seed_repeats() -> None:
    first, second, other = (make_chooser(1.0, seed=seed) for seed in (7, 7, 8))
    sequence = [first(LOGITS) for _ in range(50)]
    assert sequence == [second(LOGITS) for _ in range(50)]
    assert sequence != [other(LOGITS) for _ in range(50)]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"temperature": 1, "top_k": 0},
        {"temperature": 1, "top_k": 1.5},
        {"temperature": 1, "top_p": 0},
        {"temperature": 1, "top_p": 1.1},
        {"top_k": 5},
        {"top_p": 0.9},
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        make_chooser(**options)
