"""What a comparison found, as a report keeps it, and how far an artefact may be from its reference. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Annotated, Literal

from iwp_export.bundle.manifest import DecoderInfo, GenerationInfo, Manifest, ModelInfo, VisionInfo
from iwp_export.bundle.recipe import SHOWN_DIGITS, Name
from iwp_export.bundle.schema import Count, FileSize, Number, one_of, to_json
from iwp_export.pruning.settings import PruningSettings

Stage = Literal["prompt", "pixels", "features", "hidden states", "caches", "logits", "text"]
PIXELS_LIMIT = 1e-5
"""Relative, of a row of pixels. Both sides resize by the same code and differ, if at all, in the last bit of a float32
normalisation (6e-8); leaving it out, or another mean, changes percents."""
OWN_GAP = 1e-4
"""Of priorities, by what an artefact itself chose from. The selection computes in float32 whatever the model's type."""


@dataclass(frozen=True)
class Limits:
    """How far an artefact may be from its reference where one of the two computes in an element type.

    Each is at least twice what right artefacts reach, and every deliberate fault of `tests/benchmarks/faults.py` is
    beyond one. Measured on tiny-llava, 8 layers deep, on a CPU, against its checkpoint in float32, in 50 runs
    (docs/benchmarks/faults.json). Deeper models gather more rounding: `limits_of`. A GPU adds in another order: not
    measured.

    Attributes:
        rows: relative distance of a token's row of features, states, keys or values: the worst of thousands.
        cosine: of all rows of a tensor with the reference's, at least.
        logits: relative distance of a token's logits.
        kl: divergence of the next token's distribution from the reference's, nats.
        scores: of importance brought to 0 to 1, by which an artefact's may differ where it keeps other tokens.
        gap: of priorities, by which its choice may miss the reference's where it does not tell what it chose from.
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
        # rows 9e-3, cosine 1 - 1e-6, logits 2e-3, KL 2.6e-4, scores 2.4e-3, one of 480 gaps above 1e-3; with torch,
        # which rounds after every operator as a GPU does: rows 1.4e-2, logits 2.4e-3, scores 4e-3, no gap above 1e-3.
        "float16": Limits(rows=3e-2, cosine=0.99995, logits=1e-2, kl=1e-3, scores=2e-2, gap=5e-3, flips=0.1),
        # 8 bits, 4e-3 a rounding. Measured with torch: rows 6.9e-2, cosine 1 - 1e-4, logits 4.7e-2, KL 3.6e-3, scores
        # 5.8e-2, 18 % of gaps above 1e-2. Field practice asks a cosine of 0.999 of a bfloat16 backbone.
        "bfloat16": Limits(rows=1.5e-1, cosine=0.999, logits=1e-1, kl=2e-2, scores=1e-1, gap=1e-2, flips=0.5),
    }
)
"""From the finest element type to the coarsest. The coarsest that takes part in a comparison gives its limits."""

MEASURED_LAYERS = 8
"""How deep the model is that `LIMITS` were measured on."""
GROWTH = {"float32": 1.0, "float16": 0.5, "bfloat16": 0.5}
"""Power of the number of layers with which distances grow, at most.

Measured by `tests/benchmarks/depth.py` on random bundles of 8, 30 and 80 layers (docs/benchmarks/depth.json). With
weights of the usual size distances hardly grow with depth, as independent roundings add. Where weights of twice that
size amplify what they get, float32's grow with a power of up to 0.9 (80 layers: caches 1.8e-4, logits 4.6e-5), and
16-bit ones are beyond their limits at any depth. So float32 has the room: of 80 layers one weight tensor that is off by
1 % is found in seven of eight places, and missed as the queries of the last layer, which no cache shows.
"""


def limits_of(dtype: str, layers: int) -> Limits:
    """The limits for an element type and a number of decoder layers: those of `LIMITS` up to `MEASURED_LAYERS`.

    Cosines' and divergences' distances from 1 and 0 are squares, and grow as such. What tokens are chosen from lies at
    one layer, mostly an early one: its limits stay.
    """
    limits, factor = LIMITS[dtype], max(1.0, layers / MEASURED_LAYERS) ** GROWTH[dtype]
    return replace(
        limits,
        rows=limits.rows * factor,
        cosine=1 - (1 - limits.cosine) * factor**2,
        logits=limits.logits * factor,
        kl=limits.kl * factor**2,
    )


@dataclass(frozen=True)
class Identity:
    """What of a manifest must be the same for two artefacts to give the same answers."""

    model: ModelInfo
    pruning: PruningSettings
    decoder: DecoderInfo
    vision: VisionInfo
    generation: GenerationInfo

    @classmethod
    def of(cls, manifest: Manifest, digest: str | None = None) -> Identity:
        """Of an artefact, or of a checkpoint: its digest and the manifest that an export of it would have."""
        model = manifest.model if digest is None else replace(manifest.model, digest=digest)
        return cls(model, manifest.pruning, manifest.decoder, manifest.vision, manifest.generation)

    def __str__(self) -> str:
        digest = f", digest {self.model.digest[:SHOWN_DIGITS]}" if self.model.digest else ""
        return f"{self.model.name} ({self.model.model_type}{digest})"

    def other_model(self, other: Identity) -> list[str]:
        """What shows that this is not of the other's checkpoint, as `field: ours, not theirs`."""
        ours, theirs, found = self.model, other.model, []
        if ours.digest and theirs.digest and ours.digest != theirs.digest:
            found.append(f"checkpoint: digest {ours.digest[:SHOWN_DIGITS]}, not {theirs.digest[:SHOWN_DIGITS]}")
        if ours.model_type != theirs.model_type:
            found.append(f"model_type: {ours.model_type}, not {theirs.model_type}")
        return found

    def differences(self, other: Identity, bounded: bool = False) -> list[str]:
        """All that differs. The keep ratio of the settings is only a default, and element types are compared by their
        rounding; an engine's positions are `bounded`, as it was built."""
        left_out = ("keep", "dtype", "max_positions") if bounded else ("keep", "dtype")
        found = self.other_model(other)
        for part in ("pruning", "decoder", "vision", "generation"):
            ours, theirs = getattr(self, part), getattr(other, part)
            for name in (field.name for field in fields(ours)):
                a, b = getattr(ours, name), getattr(theirs, name)
                if name not in left_out and to_json(a) != to_json(b):
                    found.append(f"{part}.{name}: {a!s:.40}, not {b!s:.40}")
        return found


@dataclass(frozen=True)
class Integrity:
    """An artefact's files, all of them read, against the hashes in its manifest; `flaw` is empty if they match."""

    files: Number
    bytes: FileSize
    flaw: str


@dataclass
class StageFigures:
    """The distance of one stage from the reference's, at one keep ratio, over all samples so far.

    Attributes:
        stage: which.
        rows: how many rows (a token's numbers at one layer, a line of pixels) were compared.
        absolute: the largest difference: of a logit; elsewhere the length of a row's difference. None if nothing was
            compared, as for the next three.
        relative: the largest distance of a row, of the reference's length (`check.distances`).
        cosine: the smallest, of a tensor of such rows with the reference's: of one layer's keys, say.
        kl: the largest divergence of the next token's distribution from the reference's, nats; None but for logits.
        where, cosine_where, kl_where: the places of these.
        flaw: the first thing that cannot be compared, with its place: a number that is not finite, a row that is
            missing. Empty if there is none.
    """

    stage: Stage
    rows: Number = 0
    absolute: float | None = None
    relative: float | None = None
    cosine: float | None = None
    kl: float | None = None
    where: str = ""
    cosine_where: str = ""
    kl_where: str = ""
    flaw: str = ""


@dataclass(frozen=True)
class Gap:
    """One set of kept visual tokens that is not the reference's.

    Attributes:
        gap: the most by which a token that was left out beats one that was taken, in priorities from 0 to 1, by what
            the reference chose from (`pruning.reference.selection_gap`); None if it does not tell.
        own_gap: the same by what the artefact itself chose from; None if it does not tell.
        scores: largest difference of a token's importance, brought to 0 to 1, from the reference's; None likewise.
        where: sample and keep ratio.
    """

    gap: float | None
    own_gap: float | None
    scores: float | None
    where: str


@dataclass
class KeptFigures:
    """Which visual tokens went on, against the reference's choice.

    Attributes:
        choices: how many were compared.
        differing: how many of them are other sets.
        gaps: of those that differ and have as many tokens.
        followed: how many of those that differ the reference could follow, to compare what comes after.
        flaw: see `StageFigures.flaw`: another number of tokens, say.
    """

    choices: Number = 0
    differing: Number = 0
    gaps: tuple[Gap, ...] = ()
    followed: Number = 0
    flaw: str = ""


@dataclass
class TokenFigures:
    """Greedy tokens along the reference's answers, each after the reference's tokens before it.

    Attributes:
        tokens: how many were compared.
        differing: how many are others.
        ties: how many of those were as likely to the reference, within the logits' own distance.
        where: the first that differs and is no tie.
    """

    tokens: Number = 0
    differing: Number = 0
    ties: Number = 0
    where: str = ""


@dataclass(frozen=True)
class KeepFigures:
    """All stages at one keep ratio. Prompt, pixels and features are given at the first ratio alone."""

    keep: float
    stages: tuple[StageFigures, ...]
    kept: KeptFigures
    tokens: TokenFigures


@dataclass(frozen=True)
class Parity:
    """An artefact against a reference.

    Attributes:
        reference: what it was compared with.
        dtype: the coarsest element type that took part; limits are of this one.
        samples, probes: how many were asked, and how many beside them (`parity.probes`).
        new_tokens: tokens of each answer.
        differences: what of the artefact's manifest is not the reference's: another checkpoint, other settings.
        integrity: its files; None if they were not read.
        keeps: by keep ratio.
        notes: what was not compared, and why.
        layers: of the decoder; limits are of so many (`limits_of`).
    """

    reference: Name
    dtype: Annotated[str, one_of(*LIMITS)]
    samples: Count
    new_tokens: Count
    differences: tuple[str, ...]
    integrity: Integrity | None
    keeps: tuple[KeepFigures, ...]
    notes: tuple[str, ...]
    probes: Number = 0
    layers: Number = MEASURED_LAYERS
