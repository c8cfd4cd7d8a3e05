"""Choosing the next token from logits: greedy, or sampled with temperature, top-k and top-p."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iwp_export.errors import BackendError, RequestError

Chooser = Callable[[npt.NDArray[np.float32]], int]
"""From logits float32 [V] to the index of the next token."""


@dataclass(frozen=True)
class AnswerOptions:
    """What a request may ask of an answer.

    Attributes:
        max_new_tokens: tokens of the answer at most.
        temperature: 0 takes the most likely token; above 0 tokens are drawn.
        top_k, top_p, seed: see `make_chooser`.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None


def make_chooser(
    temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None, seed: int | None = None
) -> Chooser:
    """The way of choosing tokens that a request asks for.

    Args:
        temperature: 0 is greedy; above 0 the logits are divided by it and a token is drawn.
        top_k: draw among this many most likely tokens; None is all.
        top_p: draw among the fewest most likely tokens whose probabilities reach this sum; None is all.
        seed: of the draws; None draws differently each time.

    Raises:
        RequestError: a value is out of its range, or goes with drawing while the temperature is 0.
    """
    if not _is_number(temperature) or not 0 <= temperature < math.inf:
        raise RequestError(f"temperature must be a finite number of 0 or more, got {temperature!r}")
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
        raise RequestError(f"top_k must be a whole number of 1 or more, got {top_k!r}")
    if top_p is not None and (not _is_number(top_p) or not 0 < top_p <= 1):
        raise RequestError(f"top_p must be a number above 0 and at most 1, got {top_p!r}")
    if temperature == 0:
        if top_k is not None or top_p is not None:
            raise RequestError("top_k and top_p need a temperature above 0: at 0 the most likely token is taken")
        return greedy
    generator = np.random.default_rng(seed)
    return lambda logits: _draw(logits, temperature, top_k, top_p, generator)


def greedy(logits: npt.NDArray[np.float32]) -> int:
    """Index of the largest logit; of equal ones the first.

    Raises:
        BackendError: the logits hold no number that is largest.
    """
    best = int(np.argmax(logits))
    if not math.isfinite(logits[best]):  # NaN is what argmax returns first
        raise BackendError(f"the model's logits are not finite (token {best}: {logits[best]}); check its precision")
    return best


def _draw(
    logits: npt.NDArray[np.float32],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: np.random.Generator,
) -> int:
    best = greedy(logits)
    weights = np.exp((logits.astype(np.float64) - float(logits[best])) / temperature)
    order = np.argsort(-weights, kind="stable")[:top_k]
    cumulative = np.cumsum(weights[order])
    total = cumulative[-1]
    if top_p is not None:
        # The token that carries the sum over top_p is the last one of the choice.
        count = int(np.searchsorted(cumulative, top_p * total)) + 1
        total = cumulative[min(count, len(order)) - 1]
    index = int(np.searchsorted(cumulative, generator.random() * total, side="right"))
    return int(order[min(index, len(order) - 1)])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
