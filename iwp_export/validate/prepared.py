"""A question after the unpruned pass, and what a pruning setting changes of its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from iwp_export.backends.session import Ints
from iwp_export.backends.torch.decoder import Projected, Stream
from iwp_export.models.common.picture import Picture
from iwp_export.validate.questions import Question


@dataclass(frozen=True)
class Score:
    """One setting on one question.

    Attributes:
        kl: divergence of the next token's distribution from the unpruned model's, nats, mean over the answer's tokens.
        agrees: whether the greedy answer is the unpruned model's.
        right: whether the answer is the data's; None where it has none or it was not asked for.
    """

    kl: float
    agrees: bool
    right: bool | None = None


@dataclass(frozen=True)
class Prepared:
    """A question after the unpruned pass over its prompt of S tokens and its answer of T.

    Attributes:
        question: what was asked.
        pictures: its images.
        token_ids: int64 [S].
        visual: bool [S].
        answer: text of the unpruned model.
        log_probs: float32 [T, V], of each token of the answer.
        best: int64 [T], the likeliest tokens.
        confidence: mean probability of the likeliest tokens.
        features: [n, D], of the visual tokens.
        layers: for each candidate layer, its input and its projections of the S + T - 1 tokens that are run.
    """

    question: Question
    pictures: tuple[Picture, ...]
    token_ids: Ints
    visual: npt.NDArray[np.bool_]
    answer: str
    log_probs: Tensor
    best: Tensor
    confidence: float
    features: Tensor
    layers: Mapping[int, tuple[Stream, Projected]]

    @property
    def right(self) -> bool | None:
        """Whether the unpruned model is right; None without an answer to compare with."""
        return None if self.question.answer is None else self.answer in self.question.accepted
