"""How much a token matters: one short function per variant of the score, the same for numpy and torch.

The functions use what both libraries have under one name, so that the oracle, the torch reference and the traced graph
share them. torch is not imported here: the caller hands over its module. Traced, they are ordinary ONNX operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from iwp_export.pruning.settings import Heads, Magnitude

Array = Any
"""A numpy array or a torch tensor."""

LOWEST = -1e30
"""A text token's logit: finite, since a call without a visual token would otherwise subtract infinities."""


@dataclass(frozen=True)
class Tokens:
    """What a score is computed from, float32. A query row is one query head of a key/value head's group.

    Attributes:
        xp: the module of the arrays, `numpy` or `torch`.
        query: [B, Hkv, R, d], the rows that score.
        key: [B, Hkv, S, d].
        value: [B, Hkv, S, dv].
        visual: bool [B, 1, 1, S].
        heads: how the rows' kernels weigh against each other.
    """

    xp: Any
    query: Array
    key: Array
    value: Array
    visual: Array
    heads: Heads


def token_importance(
    xp: Any,
    query: Array,
    key: Array,
    value: Array,
    is_visual: Array,
    *,
    magnitude: Magnitude = "kernel_value",
    heads: Heads = "softmax",
) -> Array:
    """Score of each token, averaged over the heads, float32 [B, S]; what it is at text has no meaning.

    Args:
        xp: the module of the arrays, `numpy` or `torch`.
        query: float32 [B, H, Q, d], the queries that score; their mean is used (Sec. 4.1 of arXiv:2604.00757).
        key: float32 [B, Hkv, S, d]; H is a multiple of Hkv.
        value: float32 [B, Hkv, S, dv].
        is_visual: bool [B, S].
        magnitude, heads: see `PruningSettings`.
    """
    batch, kv_heads, _, size = key.shape
    rows = query.mean(2).reshape(batch, kv_heads, -1, size)
    tokens = Tokens(xp, rows, key, value, is_visual[:, None, None], heads)
    return VARIANTS[magnitude](tokens).mean((1, 2))


def kernel_value(tokens: Tokens) -> Array:
    """kappa(q, k) ||v|| (Eq. 10)."""
    return kernel(tokens) * value(tokens)


def kernel(tokens: Tokens) -> Array:
    """kappa(q, k) = exp(q.k / sqrt(d))."""
    return _exponential(tokens, tokens.query / _root(tokens) @ tokens.key.swapaxes(2, 3))


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


VARIANTS: Mapping[Magnitude, Callable[[Tokens], Array]] = {
    "kernel_value": kernel_value,
    "kernel": kernel,
    "value": value,
    "key": key,
    "update": update,
}
"""Each returns [B, Hkv, R, S], or [B, Hkv, 1, S] where the query plays no part."""


def _exponential(tokens: Tokens, logits: Array) -> Array:
    """exp of the logits [B, Hkv, R, S] at visual tokens, 0 at text.

    `softmax` divides each row by its sum over the visual tokens; `raw` subtracts one maximum from all rows.
    """
    xp = tokens.xp
    logits = xp.where(tokens.visual, logits, LOWEST)
    axes = -1 if tokens.heads == "softmax" else (1, 2, 3)
    result = xp.exp(logits - xp.amax(logits, axis=axes, keepdims=True))
    return result / result.sum(-1)[..., None] if tokens.heads == "softmax" else result


def _norm(xp: Any, vectors: Array) -> Array:
    """Lengths of [B, Hkv, S, d] as [B, Hkv, 1, S]."""
    return xp.sqrt(xp.square(vectors).sum(-1))[:, :, None]


def _root(tokens: Tokens) -> float:
    return float(tokens.key.shape[-1] ** 0.5)
