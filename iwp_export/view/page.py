"""An HTML page in one file: it asks for nothing from anywhere, runs no script, and every text in it is escaped."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from iwp_export.errors import OutputError, os_reason
from iwp_export.files import whole_file
from iwp_export.version import __version__
from iwp_export.view.style import CSS
from iwp_export.view.svg import Svg
from iwp_export.view.text import escape

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The browser itself holds the page to it, whatever a bug may let through."""
PNG_HEAD = b"\x89PNG\r\n\x1a\n"


class Block(Protocol):
    """A part of a page."""

    def html(self) -> str:
        """Its markup."""
        ...


@dataclass(frozen=True)
class Paragraph:
    """Text; `quiet` is for remarks."""

    text: str
    quiet: bool = False

    def html(self) -> str:
        return f'<p class="quiet">{escape(self.text)}</p>' if self.quiet else f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Verdict:
    """What was found, in sentences, of which the first is the headline."""

    sentences: Sequence[str]

    def html(self) -> str:
        return f'<div class="verdict">{"".join(f"<p>{escape(text)}</p>" for text in self.sentences)}</div>'


@dataclass(frozen=True)
class Command:
    """A command line to copy."""

    text: str

    def html(self) -> str:
        return f"<pre><code>{escape(self.text)}</code></pre>"


@dataclass(frozen=True)
class Pairs:
    """Names and values. A value is in the direction of its own script, which cannot reach out of it."""

    rows: Sequence[tuple[str, object]]

    def html(self) -> str:
        rows = (f'<dt>{escape(name)}</dt><dd dir="auto">{escape(value)}</dd>' for name, value in self.rows)
        return f"<dl>{''.join(rows)}</dl>"


@dataclass(frozen=True)
class Column:
    """A column of a table; numbers are right-aligned, and text in the direction of its own script."""

    title: str
    number: bool = False


@dataclass(frozen=True)
class Table:
    """A table, which scrolls in a box of its own where it is wider than the page.

    Attributes:
        columns: their titles; a text alone is a column of text.
        rows: cells, as many as there are columns; the first names the row.
        caption: what the table shows.
        strong: numbers of the rows that stand out, from 0.
    """

    columns: Sequence[Column | str]
    rows: Sequence[Sequence[object]]
    caption: str
    strong: frozenset[int] = field(default=frozenset())

    def html(self) -> str:
        columns = [column if isinstance(column, Column) else Column(column) for column in self.columns]
        head = "".join(
            f'<th scope="col"{_NUMBER if column.number else ""}>{escape(column.title)}</th>' for column in columns
        )
        rows = []
        for number, row in enumerate(self.rows):
            cells = []
            for place, (column, cell) in enumerate(zip(columns, row, strict=True)):
                tag = "td" if place else 'th scope="row"'
                mark = _NUMBER if column.number else ' dir="auto"'
                cells.append(f"<{tag}{mark}>{escape(cell)}</{tag[:2]}>")
            strong = ' class="strong"' if number in self.strong else ""
            rows.append(f"<tr{strong}>{''.join(cells)}</tr>")
        return (
            f"<figure><figcaption>{escape(self.caption)}</figcaption>"
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(self.caption)}">'
            f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></figure>"
        )


_NUMBER = ' class="number"'


@dataclass(frozen=True)
class Chart:
    """A chart with its caption."""

    svg: Svg
    caption: str

    def html(self) -> str:
        return f"<figure>{self.svg.markup}<figcaption>{escape(self.caption)}</figcaption></figure>"


@dataclass(frozen=True)
class Picture:
    """A PNG image in the page itself.

    Attributes:
        png: the file's bytes.
        alt: what it shows, for those who cannot see it.
        caption: what stands below it; may be empty.
    """

    png: bytes
    alt: str
    caption: str = ""

    def __post_init__(self) -> None:
        if self.png[:8] != PNG_HEAD or self.png[12:16] != b"IHDR" or len(self.png) < 24:
            raise ValueError("a picture of a page must be the bytes of a PNG file")

    def html(self) -> str:
        width, height = struct.unpack(">II", self.png[16:24])
        data = base64.b64encode(self.png).decode("ascii")
        caption = f'<figcaption dir="auto">{escape(self.caption)}</figcaption>' if self.caption else ""
        source = f"data:image/png;base64,{data}"
        image = f'<img src="{source}" alt="{escape(self.alt)}" width="{width}" height="{height}">'
        return f"<figure>{image}{caption}</figure>"


@dataclass(frozen=True)
class Beside:
    """Blocks beside each other, or one below the other where the page is narrow."""

    blocks: Sequence[Block]

    def html(self) -> str:
        return f'<div class="beside">{"".join(block.html() for block in self.blocks)}</div>'


@dataclass(frozen=True)
class Group:
    """Blocks that stay together."""

    blocks: Sequence[Block]

    def html(self) -> str:
        return f"<div>{''.join(block.html() for block in self.blocks)}</div>"


@dataclass(frozen=True)
class Fold:
    """Blocks that show when their summary is clicked on, and in print."""

    summary: str
    blocks: Sequence[Block]

    def html(self) -> str:
        inner = "".join(block.html() for block in self.blocks)
        return f"<details><summary>{escape(self.summary)}</summary>{inner}</details>"


@dataclass(frozen=True)
class Section:
    """Blocks under a heading, of level 2, or 3 for a section inside another."""

    title: str
    blocks: Sequence[Block]
    level: int = 2

    def html(self) -> str:
        inner = "\n".join(block.html() for block in self.blocks)
        heading = f'<h{self.level} dir="auto">{escape(self.title)}</h{self.level}>'
        return f"<section>{heading}\n{inner}</section>"


@dataclass(frozen=True)
class Page:
    """A page: its title, a line below it, and its blocks."""

    title: str
    subtitle: str
    blocks: Sequence[Block]

    def html(self) -> str:
        """The file's text; it has no date, so that the same page is the same text."""
        inner = "\n".join(block.html() for block in self.blocks)
        return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="iwp-export {escape(__version__)}">
<meta name="color-scheme" content="light dark">
<title>{escape(self.title)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
<h1 dir="auto">{escape(self.title)}</h1>
<p class="quiet" dir="auto">{escape(self.subtitle)}</p>
{inner}
</main>
</body>
</html>
"""

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all; one that is there is replaced.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            with whole_file(path) as file:
                file.write_text(self.html(), encoding="utf-8", newline="\n")
        except OSError as error:
            raise OutputError(f"Cannot write {path}: {os_reason(error)}", options=("output",)) from error
