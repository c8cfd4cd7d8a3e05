"""How far an artefact may be from its reference: one table, with the reason of each number.

Measured on tiny-llava, 8 layers deep, on a CPU, against its checkpoint in float32: what right artefacts reach in 50
runs (`python -m tests.benchmarks.faults`; docs/benchmarks/faults.json has the figures). Deeper models gather more
rounding, and a GPU adds in another order; neither was measured. Each limit is at least twice what was measured, and
every fault of the list is beyond one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

PIXELS = 1e-5
"""Relative, of a row of pixels. Both sides resize by the same code and differ, if at all, in the last bit of a float32
normalisation (6e-8); leaving it out, or another mean, changes percents."""
OWN_GAP = 1e-4
"""Of priorities, by what an artefact itself chose from. The selection computes in float32 whatever the model's type."""


@dataclass(frozen=True)
class Limits:
    """Of one element type.

    Attributes:
        rows: relative distance of a token's row of features, states, keys or values: the worst of thousands.
        cosine: of all rows of a tensor with the reference's, at least.
        logits: relative distance of a token's logits.
        kl: divergence of the next token's distribution from the reference's, nats.
        scores: of importance brought to 0 to 1, by which an artefact's may differ from the reference's where it keeps
            other tokens.
        gap: of priorities, by which its choice may then miss the reference's where it does not tell what it chose
            from, as an engine does not.
        flips: share of choices that may miss by more: one early choice that flips changes all later penalties.
    """

    rows: float
    cosine: float
    logits: float
    kl: float
    scores: float
    gap: float
    flips: float


LIMITS: Mapping[str, Limits] = MappingProxyType(
    {
        # 24 bits, 6e-8 a rounding. Measured: rows 1.2e-5, cosine 1 - 2.3e-12, logits 2.8e-6, KL 2e-11, and each of 480
        # sets the same. A gap of 1e-4 is what float32 sums of a few thousand terms leave open.
        "float32": Limits(rows=1e-4, cosine=1 - 1e-10, logits=2e-5, kl=1e-8, scores=1e-3, gap=1e-4, flips=0.0),
        # 11 bits, 5e-4 a rounding. Measured with ONNX Runtime, whose CPU computes in float32 between float16 tensors:
        # rows 9e-3, cosine 1 - 1e-6, logits 1.1e-3, KL 5e-5, scores 2.4e-3, one of 480 gaps above 1e-3; with torch,
        # which rounds after every operator as a GPU does: rows 1.4e-2, logits 2.4e-3, scores 4e-3, no gap above 1e-3.
        "float16": Limits(rows=3e-2, cosine=0.99995, logits=1e-2, kl=5e-4, scores=2e-2, gap=5e-3, flips=0.1),
        # 8 bits, 4e-3 a rounding. Measured with torch: rows 6.7e-2, cosine 1 - 9e-5, logits 1.9e-2, KL 3.6e-3, scores
        # 5.8e-2, 18 % of gaps above 1e-2. Field practice asks a cosine of 0.999 of a bfloat16 backbone.
        "bfloat16": Limits(rows=1.5e-1, cosine=0.999, logits=5e-2, kl=2e-2, scores=1e-1, gap=1e-2, flips=0.5),
    }
)


def limits_of(*dtypes: str) -> tuple[str, Limits]:
    """The coarsest of the element types that take part, and its limits."""
    coarsest = max(dtypes, key=list(LIMITS).index)
    return coarsest, LIMITS[coarsest]
