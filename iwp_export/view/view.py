"""What a proof shows, before it is known where: sentences, facts, tables and charts, as plain values.

A proof (parity, accuracy, latency, monitors, a calibration, an estimate) returns its figures as a dataclass, which is
the JSON, and a `View` of them. `terminal.render` and `html.render` are the only code that formats one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

SHARES = 101
"""Points of a distribution: each per cent."""
UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""What neither XML nor UTF-8 can hold: control characters and halves of characters."""


def clean(text: object) -> str:
    """The text with U+FFFD in place of each character that a page cannot hold."""
    return UNWRITABLE.sub("\ufffd", str(text))


def one_line(text: str, length: int) -> str:
    """The text on one line of at most `length` characters, the last of them an ellipsis where something is left out."""
    line = " ".join(clean(text).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


@dataclass(frozen=True)
class Column:
    """A column of a table; numbers are right-aligned."""

    title: str
    number: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: their titles; a text alone is a column of text.
        rows: cells, as many as there are columns; the first names the row. None is shown as empty.
        caption: what the table shows.
        strong: numbers of the rows that stand out, from 0.
        page_only: too long or too minor for a terminal; pages fold it away.

    Raises:
        ValueError: a row of another length.
    """

    columns: Sequence[Column | str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    strong: frozenset[int] = frozenset()
    page_only: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(self.columns)} columns has {len(row)} cells: {row!r}")


@dataclass(frozen=True)
class Axis:
    """What an axis shows; values are drawn as numbers, as percent (0.5 is 50 %), as factors (1.5x), or at whole numbers
    alone. `low` and `high` are its ends; None leaves them to the values."""

    label: str
    unit: Literal["number", "percent", "factor", "whole"] = "number"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Numbers of one kind.

    Attributes:
        name: in the legend.
        x, y: where its points are.
        low, high: ends of each point's 95 % interval of y; empty for none.
        labels: text beside each point; empty for none.

    Raises:
        ValueError: lists of other lengths, or a number that is not finite.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for values in (self.x, self.y, self.low, self.high):
            if values and not all(map(math.isfinite, values)):
                raise ValueError(f"series {self.name!r} has a number that is not finite")
        for column in (self.y, self.low, self.high, self.labels):
            if column and len(column) != len(self.x):
                raise ValueError(f"series {self.name!r} has {len(self.x)} points and a list of {len(column)}")


@dataclass(frozen=True)
class Chart:
    """A chart; pages alone show it.

    Attributes:
        kind: `lines` through points, with a band from low to high; `points`, with error bars.
        title: what it shows, above it.
        alt: the same for those who cannot see it.
        series: the first has the first colour.
        x, y: its axes; y's label is not shown where it is the title.
        caption: below it; may be empty.
    """

    kind: Literal["lines", "points"]
    title: str
    alt: str
    series: Sequence[Series]
    x: Axis
    y: Axis
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG image; pages alone show it. `alt` is for those who cannot see it, `caption` stands below it."""

    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Example:
    """Pictures beside each other with facts; pages alone show it."""

    title: str
    facts: Sequence[tuple[str, object]]
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class View:
    """What a proof shows, in the order in which it is shown.

    Attributes:
        title: a heading. The first view of a page has the page's, and of a terminal none.
        sentences: what was found, the most important first; the first view's are the page's verdict.
        facts: names and values.
        charts: drawn on pages.
        tables: the figures.
        examples: shown on pages.
        parts: views inside of this one, under smaller headings.
        notes: how to read the figures, and what was not measured.
        command: a command line to copy; empty for none.
    """

    title: str
    sentences: Sequence[str] = ()
    facts: Sequence[tuple[str, object]] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    examples: Sequence[Example] = ()
    parts: Sequence[View] = ()
    notes: Sequence[str] = ()
    command: str = ""


def distribution(name: str, values: Sequence[float]) -> Series:
    """The share of values, one at least, at or below each value, for a chart of `lines`."""
    import numpy as np  # views alone must stay light: `--help` answers at once

    shares = np.linspace(0, 1, SHARES)
    return Series(name, tuple(np.quantile(values, shares, method="inverted_cdf").tolist()), tuple(shares.tolist()))
