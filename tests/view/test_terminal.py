"""Views as text: what is for pages stays there, and headings stand where there is more than a verdict."""

from __future__ import annotations

from iwp_export.view.terminal import render
from iwp_export.view.view import Table, View
from tests.view.shown import view


def test_a_view_has_its_sentences_facts_tables_notes_and_command() -> None:
    text = render([view("word")])
    assert text.split("\n\n") == [
        "word\nword", "word  word", "word  word\nword  word\nb", "word\n----\nword", "word", "word", "word"
    ]  # fmt: skip


def test_views_but_the_first_have_headings_unless_they_are_empty() -> None:
    assert render([View("first", ("found",)), View("second", ("more",)), View("empty")]) == (
        "found\n\nsecond\n------\nmore"
    )
    assert render([]) == ""


def test_captions_tell_tables_apart() -> None:
    tables = [Table(("a",), (("1",),), caption) for caption in ("one", "two")]
    assert render([View("v", tables=tables)]) == "one\na\n1\n\ntwo\na\n1"
    assert render([View("v", tables=tables[:1])]) == "a\n1"
