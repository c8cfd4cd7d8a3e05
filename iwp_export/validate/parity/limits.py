"""How far an artefact may be from its reference: one table, with the reason of each number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

PIXELS = 1e-5
"""Relative, of a row of pixels. Both sides resize by the same code and differ, if at all, in the last bit of a float32
normalisation (6e-8); leaving it out, or another resampling, changes percents."""


@dataclass(frozen=True)
class Limits:
    """Of one element type.

    Attributes:
        rows: relative distance of a token's row of features, states, keys or values.
        cosine: of such a row with the reference's, at least.
        logits: relative distance of a token's logits.
        kl: divergence of the next token's distribution from the reference's, nats.
        gap: of priorities, by which a choice of tokens that differs may miss the reference's (`selection_gap`).
    """

    rows: float
    cosine: float
    logits: float
    kl: float
    gap: float


LIMITS: Mapping[str, Limits] = MappingProxyType(
    {
        "float32": Limits(rows=1e-3, cosine=0.999999, logits=1e-3, kl=1e-5, gap=1e-4),
        "float16": Limits(rows=3e-2, cosine=0.9995, logits=2e-2, kl=2e-3, gap=1e-2),
        "bfloat16": Limits(rows=1e-1, cosine=0.995, logits=1e-1, kl=2e-2, gap=5e-2),
    }
)


def limits_of(*dtypes: str) -> tuple[str, Limits]:
    """The coarsest of the element types that take part, and its limits."""
    coarsest = max(dtypes, key=list(LIMITS).index)
    return coarsest, LIMITS[coarsest]
