"""A view as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from iwp_export.tables import pairs, table
from iwp_export.view.view import Column, Table, View


def render(views: Sequence[View]) -> str:
    """Sentences, facts, tables and notes of each view; charts, pictures and long tables are for pages."""
    return "\n\n".join(filter(None, map(_view, views)))


def _view(view: View) -> str:
    tables = [_table(each) for each in view.tables if not each.page_only]
    parts = [
        "\n".join(view.sentences),
        pairs(view.facts),
        *tables,
        *map(_view, view.parts),
        "\n".join(view.notes),
    ]
    return "\n\n".join(filter(None, parts))


def _table(shown: Table) -> str:
    titles = [column.title if isinstance(column, Column) else column for column in shown.columns]
    rows = [["" if cell is None else cell for cell in row] for row in shown.rows]
    return table([titles, *rows])
