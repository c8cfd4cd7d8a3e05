"""How much a token matters: one short function per variant of the score, the same for numpy and torch.

The functions use what both libraries have under one name, so that the oracle, the torch reference and the traced graph
share them. torch is not imported here: the caller hands over its module. Traced, they are ordinary ONNX operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from iwp_export.pruning.settings import HeadPool, Heads, Importance, QueryPool

Array = Any
"""A numpy array or a torch tensor."""

LOWEST = -1e30
"""A text token's logit: finite, since a call without a visual token would otherwise subtract infinities."""

LEAST_REST = 1e-3
"""Least share of attention that `leave_one_out` leaves to the other tokens: it divides by it."""

GOLDEN = 10368889
"""2^24 over the golden ratio, as an odd number: multiples of it modulo 2^24 are evenly spread, and no two are equal."""
FLOAT_WHOLES = 1 << 24
"""float32 holds every whole number up to here."""
HASH_PRIME = FLOAT_WHOLES - 3
DRAW_STEP = 1 << 17
"""Numbers between the first tokens of two draws of `random`: more than a call has tokens."""
HASH_ROUNDS = ((48271, 11), (69621, 7), (16807, 101))


@dataclass(frozen=True)
class Tokens:
    """What a score is computed from, float32. A query row is one query of one query head of a key/value head's group.

    Attributes:
        xp: the module of the arrays, `numpy` or `torch`.
        query: [B, Hkv, R, d], the rows that score.
        key: [B, Hkv, S, d].
        value: [B, Hkv, S, dv].
        number: int64 [B, 1, 1, S], the number of a visual token among those of the call, -1 at text.
        visual: bool [B, 1, 1, S].
        heads: how the rows' kernels weigh against each other.
        draw: of `random`.
    """

    xp: Any
    query: Array
    key: Array
    value: Array
    number: Array
    visual: Array
    heads: Heads
    draw: int = 0


def token_importance(
    xp: Any,
    query: Array,
    key: Array,
    value: Array,
    feature_index: Array,
    *,
    importance: Importance = "kernel_value",
    query_pool: QueryPool = "before",
    heads: Heads = "softmax",
    head_pool: HeadPool = "mean",
    draw: int = 0,
) -> Array:
    """Score of each token, pooled over queries and heads, float32 [B, S]; what it is at text has no meaning.

    Args:
        xp: the module of the arrays, `numpy` or `torch`.
        query: float32 [B, H, Q, d], the queries that score (Sec. 4.1 of arXiv:2604.00757).
        key: float32 [B, Hkv, S, d]; H is a multiple of Hkv.
        value: float32 [B, Hkv, S, dv].
        feature_index: int64 [B, S], the number of a visual token among those of the call, -1 at text.
        importance, query_pool, heads, head_pool, draw: see `PruningSettings`.
    """
    batch, kv_heads, _, size = key.shape
    num_heads = query.shape[1]
    if query_pool == "before":
        query = query.mean(2)[:, :, None]
    rows = query.reshape(batch, kv_heads, -1, size)  # [B, Hkv, H / Hkv * Q, d]
    number = feature_index[:, None, None]
    scores = VARIANTS[importance](Tokens(xp, rows, key, value, number, number >= 0, heads, draw))
    if importance in WITHOUT_QUERY:
        by_head = scores[:, :, 0]
    else:
        by_query = scores.reshape(batch, num_heads, -1, scores.shape[-1])  # [B, H, Q, S]
        by_head = (xp.amax if query_pool == "max" else xp.mean)(by_query, axis=2)
    return (xp.amax if head_pool == "max" else xp.mean)(by_head, axis=1)


def kernel_value(tokens: Tokens) -> Array:
    """kappa(q, k) ||v|| (Eq. 10)."""
    return kernel(tokens) * value(tokens)


def kernel(tokens: Tokens) -> Array:
    """kappa(q, k) = exp(q.k / sqrt(d))."""
    return _exponential(tokens, _logits(tokens))


def value(tokens: Tokens) -> Array:
    """||v||."""
    return _norm(tokens.xp, tokens.value)


def key(tokens: Tokens) -> Array:
    """||k||."""
    return _norm(tokens.xp, tokens.key)


def update(tokens: Tokens) -> Array:
    """||phi(k)^T v||_F = exp(k.k / (2 sqrt(d))) ||v||."""
    square = tokens.xp.square(tokens.key).sum(-1)[:, :, None]
    return _exponential(tokens, square / (2 * _root(tokens))) * value(tokens)


def value_centred(tokens: Tokens) -> Array:
    """||v - mean v||, the mean over the sample's visual tokens: what a value adds to what all of them share."""
    return _norm(tokens.xp, _centred(tokens))


def leave_one_out(tokens: Tokens) -> Array:
    """a / (1 - a) ||v - o||: the change of a row's output o over the visual tokens when a token of share a goes."""
    xp, values = tokens.xp, _centred(tokens)  # centred values have the same differences, and round less
    logits = xp.where(tokens.visual, _logits(tokens), LOWEST)
    weights = xp.where(tokens.visual, xp.exp(logits - xp.amax(logits, axis=-1, keepdims=True)), 0.0)
    total = weights.sum(-1)[..., None]
    shares = weights / xp.where(total > 0, total, 1.0)
    output = shares @ values  # [B, Hkv, R, dv]
    squares = xp.square(values).sum(-1)[:, :, None] + xp.square(output).sum(-1)[..., None]
    squares = squares - 2 * (output @ values.swapaxes(2, 3))
    distance = xp.sqrt(xp.where(squares > 0, squares, 0.0))
    # These squares cancel where v is nearly o: at the token with most of the attention, of which a row has one at most.
    most = shares > 0.5
    its_value = xp.where(most, shares * 0 + 1, 0.0) @ values
    distance = xp.where(most, xp.sqrt(xp.square(its_value - output).sum(-1))[..., None], distance)
    rest = 1 - shares
    return shares / xp.where(rest > LEAST_REST, rest, LEAST_REST) * distance


def last_attention(tokens: Tokens) -> Array:
    """Attention weight of the row's query over all tokens of the call, text too (as in FastV, arXiv:2403.06764)."""
    xp, logits = tokens.xp, _logits(tokens)
    weights = xp.exp(logits - xp.amax(logits, axis=-1, keepdims=True))
    return weights / weights.sum(-1)[..., None]


def random(tokens: Tokens) -> Array:
    """A hash of a visual token's number and the draw: chance, but the same in every run and on every backend."""
    hashed = tokens.number + (1 + tokens.draw * DRAW_STEP % HASH_PRIME)
    for multiplier, offset in HASH_ROUNDS:
        hashed = (hashed * hashed + multiplier * hashed + offset) % HASH_PRIME
    return _as_scores(tokens, hashed)


def grid(tokens: Tokens) -> Array:
    """An even spread whatever the budget: multiples of the golden ratio, modulo 1.

    Bits in reverse order spread as evenly in the sequence, but keep a single column of a picture 8 or 16 tokens wide.
    This spread is least even in pictures 8 or 21 tokens wide, which are Fibonacci numbers.
    """
    return _as_scores(tokens, (tokens.number + 1) * GOLDEN % FLOAT_WHOLES)


VARIANTS: Mapping[Importance, Callable[[Tokens], Array]] = {
    "kernel_value": kernel_value,
    "kernel": kernel,
    "value": value,
    "key": key,
    "update": update,
    "value_centred": value_centred,
    "leave_one_out": leave_one_out,
    "last_attention": last_attention,
    "random": random,
    "grid": grid,
}
"""Each returns [B, Hkv, R, S], or [B, Hkv, 1, S] (1 for Hkv where heads play no part) if `WITHOUT_QUERY` has it."""

WITHOUT_QUERY = ("value", "key", "update", "value_centred", "random", "grid")


def _logits(tokens: Tokens) -> Array:
    return tokens.query / _root(tokens) @ tokens.key.swapaxes(2, 3)


def _exponential(tokens: Tokens, logits: Array) -> Array:
    """exp of the logits [B, Hkv, R, S] at visual tokens, 0 at text.

    `softmax` divides each row by its sum over the visual tokens; `raw` subtracts one maximum from all rows.
    """
    xp = tokens.xp
    logits = xp.where(tokens.visual, logits, LOWEST)
    axes = -1 if tokens.heads == "softmax" else (1, 2, 3)
    result = xp.exp(logits - xp.amax(logits, axis=axes, keepdims=True))
    return result / result.sum(-1)[..., None] if tokens.heads == "softmax" else result


def _centred(tokens: Tokens) -> Array:
    """Values [B, Hkv, S, dv] minus their mean over the sample's visual tokens."""
    xp, visual = tokens.xp, tokens.visual.swapaxes(2, 3)  # [B, 1, S, 1]
    count = xp.where(visual, tokens.value[:, :1, :, :1] * 0 + 1, 0.0).sum(2)[:, :, None]
    total = xp.where(visual, tokens.value, 0.0).sum(2)[:, :, None]
    return tokens.value - total / xp.where(count > 0, count, 1.0)


def _as_scores(tokens: Tokens, numbers: Array) -> Array:
    """Whole numbers [B, 1, 1, S] below 2^24 as float32."""
    return tokens.xp.asarray(numbers, dtype=tokens.xp.float32)


def _norm(xp: Any, vectors: Array) -> Array:
    """Lengths of [B, Hkv, S, d] as [B, Hkv, 1, S]."""
    return xp.sqrt(xp.square(vectors).sum(-1))[:, :, None]


def _root(tokens: Tokens) -> float:
    return float(tokens.key.shape[-1] ** 0.5)
