"""Text of unknown origin as HTML and SVG may hold it."""

from __future__ import annotations

import html
import re

UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What neither XML nor UTF-8 can hold: control characters and halves of characters."""


def clean(text: str) -> str:
    """The text with U+FFFD in place of each character that a page cannot hold."""
    return UNWRITABLE.sub("\ufffd", text)


def escape(text: object) -> str:
    """Text for HTML, between tags and inside quoted attributes alike."""
    return html.escape(clean(str(text)), quote=True)


def short(text: str, length: int) -> str:
    """The text on one line of at most `length` characters, the last of them an ellipsis where something is left out."""
    line = " ".join(clean(text).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"
