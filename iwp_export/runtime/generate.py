"""From token ids to the decoder's inputs, and from a call to its last token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from iwp_export.backends.session import Cache, Features, Ints, Session, StepInputs, StepOutput
from iwp_export.errors import RequestError, SettingsError
from iwp_export.models.common.family import Picture
from iwp_export.pruning.settings import PruningSettings, Query, check_keep
from iwp_export.runtime.result import FinishReason


def build_prompt(
    token_ids: Ints, visual: npt.NDArray[np.bool_], position_ids: Ints, settings: PruningSettings, keep: float | None
) -> StepInputs:
    """Inputs of a call with a whole prompt, or with a further turn of a conversation.

    Args:
        token_ids: int64 [S], with one image token for each visual token.
        visual: bool [S], true at visual tokens; the k-th one takes row k of the call's image features.
        position_ids: the family's, see `Family.positions`.
        settings: the bundle's pruning settings.
        keep: fraction of this call's visual tokens that stays, 0.0001 to 1; None is the settings' own.

    Raises:
        RequestError: no tokens, keep out of range, or a last token that could be pruned.
    """
    check_request_keep(keep)
    if not token_ids.size:
        raise RequestError("the prompt is empty: it needs one token at least")
    num_visual = int(visual.sum())
    num_kept = token_ids.size - num_visual + settings.num_keep(num_visual, keep)
    if visual[-1] and num_kept < token_ids.size:
        raise RequestError("the prompt ends with an image, whose last token could be pruned: put text after it")
    return StepInputs(
        input_ids=token_ids[None],
        feature_index=np.where(visual, np.cumsum(visual) - 1, -1)[None],
        query_index=query_index(visual, settings.scoring_query),
        position_ids=position_ids,
        num_kept=num_kept,
    )


def build_decode(token_id: int, position_ids: Ints) -> StepInputs:
    """Inputs of a call with one generated token at its unpruned position."""
    return StepInputs(
        input_ids=np.array([[token_id]], np.int64),
        feature_index=np.array([[-1]], np.int64),
        query_index=np.zeros(1, np.int64),
        position_ids=position_ids,
        num_kept=1,
    )


def query_index(visual: npt.NDArray[np.bool_], query: Query) -> Ints:
    """The tokens of a call whose queries score its visual tokens, int64 [Q], ascending, never empty.

    A call that lacks the tokens asked for (no text after its image, no image, no text) takes the nearest set that is
    not empty: all text, then all tokens.

    Args:
        visual: bool [S], true at visual tokens.
        query: which tokens are asked for (Sec. 4.1 of arXiv:2604.00757).
    """
    text = np.flatnonzero(~visual)
    chosen = {
        "text_after_image": text[np.cumsum(visual)[text] > 0],
        "text": text,
        "image": np.flatnonzero(visual),
        "last": text[-1:],
    }[query]
    return next(ids for ids in (chosen, text, np.arange(visual.size)) if ids.size).astype(np.int64)


def kept_patches(inputs: StepInputs, kept_index: Ints, counts: list[int]) -> list[list[int]]:
    """For each image of a call, the indices of its visual tokens that stayed, ascending.

    Args:
        inputs: the call.
        kept_index: int64 [K], as the session returned it.
        counts: visual tokens of each image of the call.
    """
    rows = inputs.feature_index[0, kept_index]
    rows = rows[rows >= 0]
    starts = np.cumsum([0, *counts])
    return [
        (rows[(rows >= start) & (rows < start + count)] - start).tolist()
        for start, count in zip(starts[:-1], counts, strict=True)
    ]


def check_request_keep(keep: float | None) -> None:
    """Refuse a request's keep ratio where `check_keep` does.

    Raises:
        RequestError: `keep` is out of range.
    """
    try:
        if keep is not None:
            check_keep(keep)
    except SettingsError as error:
        raise RequestError(str(error)) from error


TEXT = np.zeros(1, np.bool_)
"""One token that is not visual, as each generated token is."""


@dataclass
class Context:
    """A cache and what was run into it.

    Attributes:
        cache: the session's.
        token_ids: every token, pruned ones too.
        digests: of the pictures among them, in order.
        next_position: where the conversation goes on, counted unpruned.
        intact: false while a call runs, and for good if one failed: then the cache and this record may differ.
    """

    cache: Cache
    token_ids: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    next_position: int = 0
    intact: bool = True


@dataclass(frozen=True)
class Call:
    """One call of the decoder with a prompt or a further turn, ready to run.

    Attributes:
        context: what it goes on from.
        inputs: the new tokens.
        pictures: the images among them.
        next_position: where the conversation goes on after them.
        preprocess: seconds that it took to prepare.
        note: why an earlier turn's cache could not be reused; empty otherwise.
        earlier: calls that must run before this one, where a backend does not take all in one.
    """

    context: Context
    inputs: StepInputs
    pictures: tuple[Picture, ...] = ()
    next_position: int = 0
    preprocess: float = 0.0
    note: str = ""
    earlier: tuple[Call, ...] = ()

    def run(self, session: Session, features: Sequence[Features] = ()) -> StepOutput:
        """Run the call and record it in its context."""
        context = self.context
        context.intact = False
        output = session.step(self.inputs, features, context.cache)
        context.token_ids += self.inputs.input_ids[0].tolist()
        context.digests += [picture.digest for picture in self.pictures]
        context.next_position = self.next_position
        context.intact = True
        return output


@dataclass(frozen=True)
class AnswerLimits:
    """Where generation ends: tokens of this answer, tokens that end any answer, positions of the model."""

    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    max_positions: int

    def __post_init__(self) -> None:
        count = self.max_new_tokens
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise RequestError(f"max_new_tokens must be a whole number of 1 or more, got {count!r}")

    def reached(self, token_ids: Sequence[int], position: int) -> FinishReason | None:
        """Why to stop after the last of `token_ids`, which would stand at `position`; None is to go on."""
        if token_ids[-1] in self.eos_token_ids:
            return "stop"
        if len(token_ids) >= self.max_new_tokens:
            return "length"
        return "context" if position >= self.max_positions else None
