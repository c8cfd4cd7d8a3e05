"""What a pipeline answers: text, tokens, times, and what pruning kept."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from iwp_export.backends.session import CallLimits, Floats
from iwp_export.errors import RequestError
from iwp_export.models.common.family import Picture

FinishReason = Literal["stop", "length", "context"]


@dataclass(frozen=True)
class Timing:
    """Seconds spent by an answer, by phase; time in which a stream's reader did something else is not counted.

    Attributes:
        preprocess: reading, resizing and normalising images, chat template, tokenizer.
        vision: vision tower and projector; 0 for images whose features were still there.
        prefill: the decoder's call with the prompt, and the choice of the first token.
        decode: all further tokens.
        decode_tokens: their number.
    """

    preprocess: float
    vision: float
    prefill: float
    decode: float
    decode_tokens: int

    @property
    def time_to_first_token(self) -> float:
        """Seconds from the request to its first token."""
        return self.preprocess + self.vision + self.prefill

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second after the first; 0 if there was one token only."""
        return self.decode_tokens / self.decode if self.decode_tokens else 0.0


@dataclass(frozen=True)
class Result:
    """An answer.

    Attributes:
        text: the answer without special tokens and without space around it.
        token_ids: the generated tokens, the final end-of-sequence token included.
        finish_reason: `stop` (end of sequence), `length` (max_new_tokens) or `context` (the model takes no more).
        timing: seconds by phase.
        prompt_tokens: tokens of the prompt, unpruned, earlier turns included.
        reused_tokens: those of them that the key/value cache still held.
        note: why an earlier turn's cache could not be reused, and what of the checkpoint's generation_config is not
            applied; empty otherwise.
        pictures: the images of this call. Only their visual tokens competed at the pruning step; where a conversation
            was run again turn by turn, those of each turn among themselves.
        visual_tokens: visual tokens of this call.
        kept: per picture, the indices of the visual tokens that stayed, ascending.
        cache_bytes: key/value cache at the end.
        cache_bytes_unpruned: what it would be without pruning.
        cache_lengths: tokens that each layer's cache holds at the end, by the backend.
        logits: float32 [V] of each generated token, if they were asked for.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    timing: Timing
    prompt_tokens: int
    reused_tokens: int
    note: str
    pictures: tuple[Picture, ...]
    visual_tokens: int
    kept: list[list[int]]
    cache_bytes: int
    cache_bytes_unpruned: int
    cache_lengths: tuple[int, ...]
    logits: list[Floats] | None = None

    @property
    def visual_tokens_kept(self) -> int:
        """Visual tokens of this call that went on past the pruning layer."""
        return sum(map(len, self.kept))


class AnswerStream(Iterator[str]):
    """Pieces of an answer's text as they become complete; `result` once it has been read to its end."""

    def __init__(self, pieces: Generator[str, None, Result]) -> None:
        self._pieces = pieces
        self._result: Result | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as stop:
            self._result = stop.value or self._result
            raise

    @property
    def result(self) -> Result:
        """The whole answer.

        Raises:
            RequestError: the stream has not been read to its end.
        """
        if self._result is None:
            raise RequestError("the answer is not complete: read the stream to its end before asking for its result")
        return self._result

    def close(self) -> None:
        """Stop generating. A conversation forgets the turn."""
        self._pieces.close()


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


def common_length(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> int:
    """How many tokens two sequences have in common from their beginning."""
    length = min(first.size, second.size)
    differing = np.flatnonzero(first[:length] != second[:length])
    return int(differing[0]) if differing.size else length
