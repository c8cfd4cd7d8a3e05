"""What a pipeline answers: text piece by piece, tokens, times, and what pruning kept."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Literal

from iwp_export.backends.session import Floats
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

    def read(self, on_token: Callable[[str], None] | None = None) -> Result:
        """The whole answer; the pieces that were not read yet go to `on_token`."""
        for piece in self:
            if on_token is not None:
                on_token(piece)
        return self.result

    def close(self) -> None:
        """Stop generating. A conversation forgets the turn."""
        self._pieces.close()


REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are no complete character yet."""


class Detokenizer:
    """Text of a growing list of tokens: pieces are handed out when later tokens can no longer change them.

    A character may span several byte-level tokens, and a token's text may depend on its left neighbour (the space of a
    SentencePiece word). So a piece is the difference of two decodings that share the tokens before it. Space around
    the whole text is dropped.

    Args:
        decode: from token ids to text, without special tokens.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []  # tokens of the last piece, which the next one is decoded with, and open ones
        self._done = 0  # tokens of the window whose text was handed out
        self._space = ""  # space that is text only if more follows
        self.text = ""

    def add(self, token_id: int) -> str:
        """Take one more token; returns the text that became complete, often empty."""
        self._window.append(token_id)
        piece = self._open_text()
        if not piece or piece.endswith(REPLACEMENT):
            return ""
        self._window, self._done = self._window[self._done :], len(self._window) - self._done
        return self._emit(piece)

    def finish(self) -> str:
        """The rest, once no token follows: bytes that never became a character come out as replacement marks."""
        piece = self._open_text()
        self._window, self._done = [], 0
        return self._emit(piece)

    def _open_text(self) -> str:
        return self._decode(self._window)[len(self._decode(self._window[: self._done])) :]

    def _emit(self, piece: str) -> str:
        if not self.text:
            piece = piece.lstrip()
        body = piece.rstrip()
        out = self._space + body if body else ""
        if self.text or body:
            self._space = piece[len(body) :] if body else self._space + piece
        self.text += out
        return out
