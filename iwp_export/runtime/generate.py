"""From token ids to the decoder's inputs, and from a call to its last token."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from iwp_export.backends.session import Cache, Features, Floats, Ints, Session, StepInputs, StepOutput
from iwp_export.errors import RequestError, SettingsError
from iwp_export.models.common.family import Family, Picture
from iwp_export.pruning.settings import PruningSettings, Query, check_keep
from iwp_export.runtime.result import FinishReason
from iwp_export.runtime.sampling import Chooser


def build_prompt(
    token_ids: Ints, visual: npt.NDArray[np.bool_], position_ids: Ints, settings: PruningSettings, keep: float | None
) -> StepInputs:
    """Inputs of a call with a whole prompt, or with a further turn of a conversation.

    Args:
        token_ids: int64 [S], with one image token for each visual token.
        visual: bool [S], true at visual tokens; the k-th one takes row k of the call's image features.
        position_ids: the family's, see `Family.positions`.
        settings: the bundle's pruning settings.
        keep: fraction of this call's visual tokens that stays, in (0, 1]; None is the settings' own.

    Raises:
        RequestError: no tokens, keep out of range, or a last token that could be pruned.
    """
    ids = token_ids
    check_request_keep(keep)
    if not ids.size:
        raise RequestError("the prompt is empty: it needs one token at least")
    num_visual = int(visual.sum())
    num_text = ids.size - num_visual
    num_kept = num_text + settings.num_keep(num_visual, keep)
    if visual[-1] and num_kept < ids.size:
        raise RequestError("the prompt ends with an image, whose last token could be pruned: put text after it")
    return StepInputs(
        input_ids=ids[None],
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
    text = ~visual
    first = int(np.argmax(visual)) if visual.any() else -1
    chosen = text
    if query == "text_after_image":
        chosen = text & (np.arange(text.size) > first)
    elif query == "image":
        chosen = visual
    elif query == "last" and text.any():
        chosen = np.arange(text.size) == np.flatnonzero(text)[-1]
    for candidate in (chosen, text):
        if candidate.any():
            return np.flatnonzero(candidate).astype(np.int64)
    return np.arange(visual.size, dtype=np.int64)


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
    """Refuse a request's keep ratio outside (0, 1].

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

    def check_prompt(self, call: Call) -> None:
        """Refuse a call that reaches beyond the model's positions.

        Raises:
            RequestError: it does.
        """
        if call.next_position > self.max_positions:
            visual = int((call.inputs.feature_index >= 0).sum())
            raise RequestError(
                f"the prompt reaches position {call.next_position} with {visual} new visual tokens, the model takes "
                f"{self.max_positions}: "
                "shorten it, use fewer images, or begin a new conversation"
            )

    def reached(self, token_ids: Sequence[int], position: int) -> FinishReason | None:
        """Why to stop after the last of `token_ids`, which would stand at `position`; None is to go on."""
        if token_ids[-1] in self.eos_token_ids:
            return "stop"
        if len(token_ids) >= self.max_new_tokens:
            return "length"
        return "context" if position >= self.max_positions else None


@dataclass
class GenerationRecord:
    """What generation leaves behind beside its tokens; seconds of the decoder's calls."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    kept_index: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    prefill: float = 0.0
    decode: float = 0.0
    logits: list[Floats] | None = None


def generate(
    session: Session,
    family: Family,
    call: Call,
    features: Sequence[Features],
    choose: Chooser,
    limits: AnswerLimits,
    record: GenerationRecord,
) -> Iterator[int]:
    """Run a call and yield generated tokens one by one; the last one is not run into the cache.

    Args:
        session: the backend.
        family: the model's, for the positions of generated tokens.
        call: the prompt.
        features: of the call's pictures.
        choose: from logits to the next token.
        limits: where to stop.
        record: filled on the way.
    """
    start = time.perf_counter()
    context = call.context
    output = call.run(session, features)
    token = choose(output.logits)
    record.prefill += time.perf_counter() - start
    record.kept_index = output.kept_index
    while True:
        record.token_ids.append(token)
        if record.logits is not None:
            record.logits.append(output.logits)
        reason = limits.reached(record.token_ids, context.next_position)
        yield token
        if reason is not None:
            record.finish_reason = reason
            return
        start = time.perf_counter()
        positions, after = family.positions(TEXT, (), context.next_position)
        output = Call(context, build_decode(token, positions), next_position=after).run(session)
        token = choose(output.logits)
        record.decode += time.perf_counter() - start
