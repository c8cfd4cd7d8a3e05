"""What a comparison found: numbers and places, as a report keeps them. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from iwp_export.bundle.recipe import Name, Share
from iwp_export.bundle.schema import Count, FileSize, Number, one_of
from iwp_export.parity.limits import LIMITS


@dataclass(frozen=True)
class Integrity:
    """An artefact's files against the hashes that its manifest holds, all of them read.

    Attributes:
        files: how many are listed.
        bytes: in all of them.
        flaw: what is wrong; empty if nothing is.
    """

    files: Number
    bytes: FileSize
    flaw: str


@dataclass(frozen=True)
class StageFigures:
    """The distance of one stage from the reference's, at one keep ratio, over all samples.

    Attributes:
        stage: prompt, pixels, features, hidden states, caches or logits.
        rows: how many rows (a token's numbers at one layer, a line of pixels) were compared.
        absolute: the largest difference: of a logit; elsewhere the length of a row's difference. None if nothing was
            compared, as for the next three.
        relative: the largest distance of a row, of the reference's length (`sketch.Distances.relative`).
        cosine: the smallest, of a tensor of such rows with the reference's: of one layer's keys, say.
        kl: the largest divergence of the next token's distribution from the reference's, nats; None but for logits.
        where: the place of the largest relative distance.
        cosine_where: the tensor with the smallest cosine.
        kl_where: the place of the largest divergence.
        flaw: the first thing that cannot be compared: a number that is not finite, a row that is missing; with its
            place. Empty if there is none.
    """

    stage: Name
    rows: Number
    absolute: float | None
    relative: float | None
    cosine: float | None
    kl: float | None
    where: str
    cosine_where: str
    kl_where: str
    flaw: str


@dataclass(frozen=True)
class Gap:
    """One set of kept visual tokens that is not the reference's.

    Attributes:
        gap: the most by which a token that was left out beats one that was taken, in priorities from 0 to 1, by what
            the reference chose from (`pruning.reference.selection_gap`); None if it does not tell.
        own_gap: the same by what the artefact itself chose from; None if it does not tell.
        scores: largest difference of a token's importance from the reference's, both brought to 0 to 1; None if one
            does not tell.
        where: sample and keep ratio.
    """

    gap: float | None
    own_gap: float | None
    scores: float | None
    where: str


@dataclass(frozen=True)
class KeptFigures:
    """Which visual tokens went on, against the reference's choice.

    Attributes:
        choices: how many were compared.
        differing: how many of them are other sets.
        agreement: smallest share of the reference's visual tokens that the artefact kept too.
        gaps: of those that differ and have as many tokens.
        followed: how many of those that differ the reference could follow, to compare what comes after.
        flaw: see `StageFigures.flaw`: another number of tokens, say.
    """

    choices: Number
    differing: Number
    agreement: Share
    gaps: tuple[Gap, ...]
    followed: Number
    flaw: str


@dataclass(frozen=True)
class TokenFigures:
    """Greedy tokens along the reference's answers, each after the reference's tokens before it.

    Attributes:
        tokens: how many were compared.
        differing: how many are others.
        ties: how many of those were as likely to the reference, within the logits' own distance.
        where: the first that differs and is no tie.
    """

    tokens: Number
    differing: Number
    ties: Number
    where: str


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
        samples: how many.
        new_tokens: tokens of each answer.
        differences: what of the artefact's manifest is not the reference's: another checkpoint, other settings.
        integrity: its files; None if they were not read.
        keeps: by keep ratio.
        notes: what was not compared, and why.
    """

    reference: Name
    dtype: Annotated[str, one_of(*LIMITS)]
    samples: Count
    new_tokens: Count
    differences: tuple[str, ...]
    integrity: Integrity | None
    keeps: tuple[KeepFigures, ...]
    notes: tuple[str, ...]
