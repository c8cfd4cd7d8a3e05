"""Turning generated tokens into text piece by piece."""

from __future__ import annotations

from collections.abc import Callable

from iwp_export.errors import RequestError

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are no complete character yet."""


def check_text(prompt: object) -> None:
    """Refuse a prompt that a tokenizer cannot take.

    Raises:
        RequestError: it is no text, or holds half of a character, as bytes that are not UTF-8 become on a command line.
    """
    if not isinstance(prompt, str):
        raise RequestError(f"a prompt is a text, got {type(prompt).__name__}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"the prompt is not valid UTF-8 at character {error.start}") from error


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
