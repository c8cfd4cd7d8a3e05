"""Views, tables and sizes as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from iwp_export.view.view import Column, Table, View

UNITS = ("KiB", "MiB", "GiB", "TiB")


def render(views: Sequence[View]) -> str:
    """Sentences, facts, tables and notes of each view; charts, examples and long tables are for pages.

    Views and their parts have their titles above them, but the first view, which begins with what was found.
    """
    first, *others = map(_content, views) if views else ("",)
    return "\n\n".join(filter(None, [first, *map(_headed, views[1:], others)]))


def _headed(view: View, content: str) -> str:
    return f"{view.title}\n{'-' * len(view.title)}\n{content}" if content else ""


def _content(view: View) -> str:
    tables = [each for each in view.tables if not each.page_only]
    blocks = [
        "\n".join(view.sentences),
        table([*view.facts]),
        *(_table(each, len(tables) > 1) for each in tables),
        *(_headed(part, _content(part)) for part in view.parts),
        "\n".join(view.notes),
        view.command,
    ]
    return "\n\n".join(filter(None, blocks))


def _table(shown: Table, one_of_several: bool) -> str:
    titles = [column.title if isinstance(column, Column) else column for column in shown.columns]
    rows = [["" if cell is None else cell for cell in row] for row in shown.rows]
    caption = f"{shown.caption}\n" if shown.caption and one_of_several else ""
    return caption + table([titles, *rows])


def table(rows: Sequence[Sequence[object]]) -> str:
    """Lines of columns, each as wide as its widest cell."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def human_bytes(count: float) -> str:
    """A size with its unit: 1536 -> `1.5 KiB`."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in UNITS:
        count /= 1024
        if count < 1024 or unit == UNITS[-1]:
            break
    return f"{count:.1f} {unit}"
