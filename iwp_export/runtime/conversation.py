"""A conversation of several turns and images, whose key/value cache is kept between turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

from iwp_export.backends.session import Ints
from iwp_export.errors import RequestError
from iwp_export.models.common.picture import Picture
from iwp_export.runtime.generate import Call, Context
from iwp_export.runtime.images import ImageSource
from iwp_export.runtime.model import LoadedModel
from iwp_export.runtime.processor import Message, assistant_message, user_message
from iwp_export.runtime.request import check_request_keep
from iwp_export.runtime.result import AnswerStream, Result
from iwp_export.runtime.sampling import AnswerOptions, make_chooser
from iwp_export.runtime.text import check_text

Images = ImageSource | Sequence[ImageSource] | None
"""One image, several, or none."""


AGAIN = "the conversation was run again from its first token"


class Conversation:
    """Turns that build on each other. Made by `Pipeline.chat`.

    Only a turn's new tokens are run: the cache holds the earlier ones. An image's visual tokens are pruned once, in
    the turn that brings it, with that turn's question; later turns see the tokens that stayed. If the chat template
    renders the earlier turns otherwise than they were run, the whole conversation is run again, all its images
    competing in one pool, and `Result.note` says so.
    """

    def __init__(self, model: LoadedModel, keep: float | None = None) -> None:
        check_request_keep(keep)
        self._model = model
        self._keep = keep
        self._context = Context(model.session.new_cache())
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
        stream = self.stream(prompt, image, **options)
        for piece in stream:
            if on_token is not None:
                on_token(piece)
        return stream.result

    def stream(self, prompt: str, image: Images = None, **options: Any) -> AnswerStream:
        """One turn, piece by piece. A stream that is not read to its end leaves the conversation without this turn."""
        start = time.perf_counter()
        wanted = AnswerOptions(**options)
        choose = make_chooser(wanted.temperature, wanted.top_k, wanted.top_p, wanted.seed)
        limits = self._model.limits(wanted.max_new_tokens)
        check_text(prompt)
        processor = self._model.processor
        new = [processor.image(source) for source in image_list(image)]
        messages = [*self._messages, user_message(prompt, len(new))]
        pictures = [*self._pictures, *new]
        call = self._plan(processor.token_ids(processor.render(messages), pictures), pictures)
        limits.check_prompt(call)
        call = replace(call, preprocess=time.perf_counter() - start)
        self._turn += 1
        answer = self._model.answer(call, choose, limits)
        return AnswerStream(self._follow(answer, call.context, self._turn, messages, pictures))

    def _plan(self, token_ids: Ints, pictures: list[Picture]) -> Call:
        """The shortest call after which the context holds the whole conversation."""
        context = self._context
        known = len(context.token_ids)
        note = ""
        if known:
            note = self._difference(token_ids, pictures)
        if note:
            context, known = Context(self._model.session.new_cache()), 0
        call = self._model.prepare(context, token_ids[known:], pictures[len(context.digests) :], self._keep)
        return replace(call, note=note)

    def _difference(self, token_ids: Ints, pictures: list[Picture]) -> str:
        """Why the cache does not hold the beginning of this conversation, or an empty string if it does."""
        context = self._context
        known = len(context.token_ids)
        digests = [picture.digest for picture in pictures[: len(context.digests)]]
        if not context.intact:
            return f"{AGAIN}: the last call was interrupted"
        if digests != context.digests or token_ids[:known].tolist() != context.token_ids:
            return f"{AGAIN}: its beginning differs from what the cache holds"
        if len(token_ids) == known:
            return f"{AGAIN}: the cache holds all of it already"
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


def image_list(image: Images) -> list[ImageSource]:
    """The images of a turn as a list."""
    if image is None:
        return []
    return list(image) if isinstance(image, list | tuple) else [image]  # type: ignore[list-item]
