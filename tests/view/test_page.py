"""Pages: one file that asks for nothing, with every text escaped."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from iwp_export.errors import OutputError
from iwp_export.view import page as html
from tests.view.markup import check

NASTY = "</td></main><script src=https://x.org/a.js>alert('1')</script> & \"q\" <img src=x onerror=y> \x00\ud800"
ESCAPED = NASTY.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")


def png(width: int = 3, height: int = 2) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def page(text: str = NASTY) -> html.Page:
    """Every kind of block, all of one text."""
    table = html.Table((text, html.Column(text, number=True)), ((text, text), ("b", 2)), text, frozenset({1}))
    blocks = (
        html.Verdict((text, text)),
        html.Paragraph(text),
        html.Paragraph(text, quiet=True),
        html.Command(text),
        html.Pairs(((text, text),)),
        table,
        html.Picture(png(), text, text),
        html.Beside((html.Group((html.Paragraph(text),)), html.Fold(text, (table,)))),
        html.Section(text, (html.Paragraph(text),), level=3),
    )
    return html.Page(text, text, blocks)


def test_every_text_is_escaped_and_every_tag_closed() -> None:
    markup = check(page().html())
    assert markup.texts.count(ESCAPED) == 25
    assert [found["alt"] for tag, found in markup.attributes if tag == "img"] == [ESCAPED]
    assert not [name for _, found in markup.attributes for name in found if name.startswith("on")]


def test_the_test_would_notice_what_is_wrong() -> None:
    whole = page("fine").html()
    for wrong in (
        whole.replace("</dl>", "", 1),
        whole.replace("<p>fine</p>", '<img src="https://example.com/x.png">', 1),
        whole.replace("<p>fine</p>", '<p style="background: url(https://example.com)">x</p>', 1),
        whole.replace("<p>fine</p>", "<script>x</script>", 1),
    ):
        assert wrong != whole
        with pytest.raises(AssertionError):
            check(wrong)


def test_the_browser_is_told_to_ask_for_nothing() -> None:
    metas = [found for tag, found in check(page().html()).attributes if tag == "meta"]
    (policy,) = [found["content"] or "" for found in metas if "http-equiv" in found]
    assert policy.startswith("default-src 'none';") and "script-src" not in policy


def test_numbers_are_on_the_right_and_rows_stand_out() -> None:
    attributes = check(page("x").html()).attributes
    assert sum(tag == "td" and found.get("class") == "number" for tag, found in attributes) == 4
    assert sum(tag == "tr" and found.get("class") == "strong" for tag, found in attributes) == 2


def test_a_table_needs_as_many_cells_as_columns() -> None:
    with pytest.raises(ValueError, match="shorter"):
        html.Table(("a", "b"), (("x",),), "t").html()


def test_a_picture_has_its_size_and_must_be_a_png() -> None:
    (image,) = [found for tag, found in check(page().html()).attributes if tag == "img"]
    assert (image["width"], image["height"]) == ("3", "2")
    with pytest.raises(ValueError, match="PNG"):
        html.Picture(b"\xff\xd8\xff\xe0" + bytes(40), "a JPEG")


def test_text_from_right_to_left_stays_in_its_place() -> None:
    text = "\u0645\u0631\u062d\u0628\u0627 \u202eabc"
    whole = html.Page("t", "s", (html.Pairs((("Answer", text),)), html.Table(("a",), ((text,),), "t"))).html()
    attributes = check(whole).attributes
    assert [found.get("dir") for tag, found in attributes if tag == "dd" or found.get("scope") == "row"] == ["auto"] * 2


def test_a_page_is_written_whole_and_is_the_same_again(tmp_path: Path) -> None:
    file = tmp_path / "new" / "page.html"
    for _ in range(2):
        page().write(file)
        assert file.read_bytes() == page().html().encode()
    assert list(file.parent.iterdir()) == [file]


def test_a_page_that_cannot_be_written_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"^Cannot write .*page\.html: (File exists|Not a directory)$"):
        page().write(tmp_path / "file" / "page.html")
