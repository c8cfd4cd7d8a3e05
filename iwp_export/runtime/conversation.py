"""A conversation of several turns and images, whose key/value cache is kept between turns."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iwp_export.backends.session import CallLimits, Ints
from iwp_export.errors import RequestError
from iwp_export.models.common.family import Picture
from iwp_export.runtime.generate import Call, Context, check_request_keep
from iwp_export.runtime.images import ImageSource
from iwp_export.runtime.processor import assistant_message, user_message
from iwp_export.runtime.result import AnswerStream, Result
from iwp_export.runtime.sampling import AnswerOptions, make_chooser
from iwp_export.runtime.template import Message

if TYPE_CHECKING:
    from iwp_export.runtime.pipeline import Pipeline

Images = ImageSource | Sequence[ImageSource] | None
"""One image, several, or none."""


class Conversation:
    """Turns that build on each other. Made by `Pipeline.chat`.

    Only a turn's new tokens are run: the cache holds the earlier ones. An image's visual tokens are pruned once, in
    the turn that brings it, with that turn's question; later turns see the tokens that stayed. If the chat template
    renders the earlier turns otherwise than they were run, the whole conversation is run again from its first token,
    and `Result.note` says so. That is one call, in which all its images compete in one pool, or, where the backend does
    not take so much in a call, one for each turn with images, which then compete as they did at first.
    """

    def __init__(self, pipeline: Pipeline, keep: float | None = None) -> None:
        check_request_keep(keep)
        self._pipeline = pipeline
        self._keep = keep
        self._context = Context(pipeline.session.new_cache())
        self._messages: list[Message] = []
        self._pictures: list[Picture] = []
        self._turn = 0

    @property
    def messages(self) -> list[Message]:
        """The completed turns, as a chat template takes them."""
        return list(self._messages)

    def ask(
        self, prompt: str, image: Images = None, *, on_token: Callable[[str], None] | None = None, **options: Any
    ) -> Result:
        """One turn, answered whole; see `Pipeline.__call__`."""
        return self.stream(prompt, image, **options).read(on_token)

    def stream(self, prompt: str, image: Images = None, **options: Any) -> AnswerStream:
        """One turn, piece by piece. A stream that is not read to its end leaves the conversation without this turn."""
        start = time.perf_counter()
        wanted = AnswerOptions(**options)
        choose = make_chooser(wanted, self._pipeline.manifest.generation)
        limits = self._pipeline.limits(wanted.max_new_tokens)
        sources = [] if image is None else list(image) if isinstance(image, list | tuple) else [image]
        messages = [*self._messages, user_message(prompt, len(sources))]
        pictures = [*self._pictures, *(self._pipeline.processor.image(source) for source in sources)]  # type: ignore[arg-type]
        call = replace(self._plan(messages, pictures), preprocess=time.perf_counter() - start)
        self._turn += 1
        answer = self._pipeline.answer(call, choose, limits)
        return AnswerStream(self._follow(answer, call.context, self._turn, messages, pictures))

    def _plan(self, messages: list[Message], pictures: list[Picture]) -> Call:
        """The fewest calls after which the context holds the whole conversation; the last of them is answered."""
        pipeline, context = self._pipeline, self._context
        token_ids = self._token_ids(messages, pictures)
        note = self._difference(token_ids, pictures) if context.token_ids else ""
        if note:
            note = f"the conversation was run again from its first token: {note}"
            context = Context(pipeline.session.new_cache())
        known, new = len(context.token_ids), pictures[len(context.digests) :]
        visual, limits = token_ids[known:] == pipeline.manifest.vision.image_token_id, pipeline.session.call_limits
        ends = [visual.size]
        if limits is not None and not limits.allow(visual):
            ends = split_calls(visual, self._turn_ends(messages, pictures, token_ids, known), limits)
            note = f"{note}, turn by turn" if note else ""
        calls: list[Call] = []
        position = context.next_position
        for start, end in itertools.pairwise([0, *ends]):
            count = _pictures_of(int(visual[start:end].sum()), new)
            call = pipeline.prepare(context, token_ids[known + start : known + end], new[:count], self._keep, position)
            calls.append(call)
            position, new = call.next_position, new[count:]
        return replace(calls[-1], note=note, earlier=tuple(calls[:-1]))

    def _turn_ends(self, messages: list[Message], pictures: list[Picture], token_ids: Ints, known: int) -> list[int]:
        """Where the users' turns end, counted from the first token that is not known.

        A turn ends where its rendering without the later ones ceases to agree with the whole one.
        """
        ends, images = {len(token_ids)}, 0
        for index, message in enumerate(messages[:-1]):
            images += sum(part["type"] == "image" for part in message["content"])
            if message["role"] == "user":
                ends.add(common_length(self._token_ids(messages[: index + 1], pictures[:images]), token_ids))
        image_token = self._pipeline.manifest.vision.image_token_id
        return [end - known for end in sorted(ends) if end > known and token_ids[end - 1] != image_token]

    def _token_ids(self, messages: list[Message], pictures: list[Picture]) -> Ints:
        return self._pipeline.processor.ask(messages, pictures).token_ids

    def _difference(self, token_ids: Ints, pictures: list[Picture]) -> str:
        """Why the cache does not hold the beginning of this conversation, or an empty string if it does."""
        context = self._context
        known = len(context.token_ids)
        digests = [picture.digest for picture in pictures[: len(context.digests)]]
        if not context.intact:
            return "the last call was interrupted"
        if digests != context.digests or token_ids[:known].tolist() != context.token_ids:
            return "its beginning differs from what the cache holds"
        if len(token_ids) == known:
            return "the cache holds all of it already"
        return ""

    def _follow(
        self,
        answer: Generator[str, None, Result],
        context: Context,
        turn: int,
        messages: list[Message],
        pictures: list[Picture],
    ) -> Generator[str, None, Result]:
        """Pass an answer on, and make it part of the conversation at its end."""
        self._check_turn(turn)
        self._context = context
        while True:
            try:
                piece = next(answer)
            except StopIteration as stop:
                result: Result = stop.value
                break
            yield piece
            self._check_turn(turn)
        self._messages = [*messages, assistant_message(result.text)]
        self._pictures = pictures
        return result

    def _check_turn(self, turn: int) -> None:
        if turn != self._turn:
            raise RequestError("this stream was overtaken by a later turn of its conversation")


def _pictures_of(visual: int, pictures: Sequence[Picture]) -> int:
    """How many of the pictures, from the first on, make so many visual tokens."""
    count = 0
    while visual > 0 and count < len(pictures):
        visual -= pictures[count].num_tokens
        count += 1
    return count


def split_calls(visual: npt.NDArray[np.bool_], turn_ends: Sequence[int], limits: CallLimits) -> list[int]:
    """Where each call ends: one call for each turn with images, so that these are pruned as when the turn was new.

    Text before a call's images is run ahead, in pieces, where the call would be too long. What is too long then, a turn
    of too many images for one, stays so: it could not be run when it was new either.

    Args:
        visual: bool [S], true at visual tokens.
        turn_ends: where the tokens of each user's turn end, ascending; the last is S.
        limits: what one call may hold.
    """
    ends: list[int] = []
    start = 0
    for end in turn_ends:
        if not visual[start:end].any() and end < visual.size:
            continue  # text: it goes with the next turn that has images
        while end - start > limits.tokens:
            text = int(np.argmax(visual[start:end])) if visual[start:end].any() else end - start
            if text == 0:
                break
            start += min(text, limits.tokens)
            ends.append(start)
        ends.append(end)
        start = end
    return ends


def common_length(first: Ints, second: Ints) -> int:
    """How many tokens two sequences have in common from their beginning."""
    length = min(first.size, second.size)
    differing = np.flatnonzero(first[:length] != second[:length])
    return int(differing[0]) if differing.size else length
