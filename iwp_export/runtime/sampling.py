"""Choosing the next token from logits: greedy, or sampled with temperature, top-k, top-p and min-p."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iwp_export.bundle.manifest import GenerationInfo
from iwp_export.errors import BackendError, RequestError
from iwp_export.pruning.settings import is_number

Chooser = Callable[[npt.NDArray[np.float32]], int]
"""From logits float32 [V] to the index of the next token."""


@dataclass(frozen=True)
class AnswerOptions:
    """What a request may ask of an answer.

    Attributes:
        max_new_tokens: tokens of the answer at most.
        temperature: 0 is greedy; above 0 the logits are divided by it and a token is drawn.
        top_k: draw among this many most likely tokens; None is what the checkpoint asks for, else all.
        top_p: draw among the fewest most likely tokens whose probabilities reach this sum; None as above.
        seed: of the draws; None draws differently each time.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None


NO_WISHES = GenerationInfo()
"""Of a checkpoint whose generation_config says nothing about the choice of tokens."""


def adjust_logits(
    logits: npt.NDArray[np.float32],
    generation: GenerationInfo,
    eos_token_ids: Sequence[int],
    token_ids: Sequence[int],
    generated: int,
) -> npt.NDArray[np.float32]:
    """Logits as the checkpoint's generation_config wants them before a token is chosen; as in transformers.

    Args:
        logits: float32 [V]; not changed.
        generation: what the checkpoint asks for.
        eos_token_ids: tokens that end an answer.
        token_ids: all tokens so far, prompt and answer, with one image token for each visual token.
        generated: how many of them belong to the answer.
    """
    banned = generation.suppress_tokens
    if generated == 0:
        banned += generation.begin_suppress_tokens
    if generated < generation.min_new_tokens or len(token_ids) < generation.min_length:
        banned += tuple(eos_token_ids)
    if generation.repetition_penalty == 1 and not banned:
        return logits
    scores = logits.copy()
    seen = _within(token_ids, len(scores))
    penalty = np.float32(generation.repetition_penalty)
    scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    scores[_within(banned, len(scores))] = -np.inf
    return scores


def _within(token_ids: Sequence[int], size: int) -> npt.NDArray[np.int64]:
    """The different tokens among these that have a logit."""
    ids = np.unique(np.asarray(token_ids, np.int64))
    return ids[(ids >= 0) & (ids < size)]


def make_chooser(options: AnswerOptions, generation: GenerationInfo = NO_WISHES) -> Chooser:
    """The way of choosing tokens that a request asks for; `generation` counts where it says nothing.

    Raises:
        RequestError: a value is out of its range, or goes with drawing while the temperature is 0.
    """
    temperature, top_k, top_p, seed = options.temperature, options.top_k, options.top_p, options.seed
    if not is_number(temperature) or not 0 <= temperature < math.inf:
        raise RequestError(f"temperature must be a finite number of 0 or more, got {temperature!r}")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise RequestError(f"top_k must be a whole number of 1 or more, got {top_k!r}")
    if top_p is not None and (not is_number(top_p) or not 0 < top_p <= 1):
        raise RequestError(f"top_p must be a number above 0 and at most 1, got {top_p!r}")
    if seed is not None and (type(seed) is not int or seed < 0):
        raise RequestError(f"seed must be a whole number of 0 or more, got {seed!r}")
    if temperature == 0:
        if top_k is not None or top_p is not None:
            raise RequestError("top_k and top_p need a temperature above 0: at 0 the most likely token is taken")
        return greedy
    top_k = generation.top_k if top_k is None else top_k
    top_p = generation.top_p if top_p is None else top_p
    generator = np.random.default_rng(seed)

    def draw(logits: npt.NDArray[np.float32]) -> int:
        tokens, weights = candidates(logits, temperature, top_k, top_p, generation.min_p)
        cumulative = np.cumsum(weights)
        index = int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))
        return int(tokens[min(index, len(tokens) - 1)])

    return draw


def greedy(logits: npt.NDArray[np.float32]) -> int:
    """Index of the largest logit; of equal ones the first.

    Raises:
        BackendError: the logits hold no number that is largest.
    """
    best = int(np.argmax(logits))
    if not math.isfinite(logits[best]):  # NaN is what argmax returns first
        raise BackendError(f"the model's logits are not finite (token {best}: {logits[best]}); check its precision")
    return best


def candidates(
    logits: npt.NDArray[np.float32], temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Among which tokens to draw: ids [n], the most likely first, and their weights [n], the largest of them 1.

    Args:
        logits: float32 [V].
        temperature, top_k, top_p: see `AnswerOptions`.
        min_p: leave out tokens less likely than this share of the most likely one; None leaves none out.
    """
    best = greedy(logits)
    weights = np.exp((logits.astype(np.float64) - float(logits[best])) / temperature)
    order = np.argsort(-weights, kind="stable")
    if top_k is not None:
        order = order[logits[order] >= logits[order[min(top_k, len(order)) - 1]]]  # with all that equal the last one
    if top_p is not None:
        cumulative = np.cumsum(weights[order])
        # The token that carries the sum over top_p is the last one of the choice.
        order = order[: int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1]
    if min_p is not None:
        order = order[weights[order] >= min_p]
    return order, weights[order]
