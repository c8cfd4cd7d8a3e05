"""Pages: one file that asks for nothing, with every text escaped."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from iwp_export.errors import OutputError
from iwp_export.view import html
from iwp_export.view.draw import SCHEMES
from iwp_export.view.view import Table, View
from tests.view.browser import needs_chromium, open_page
from tests.view.markup import Markup, check
from tests.view.shown import CLEAN, NASTY, view

pytest.importorskip("matplotlib", reason="the extra [report] is not installed")
DARK, LIGHT = "--blink-settings=preferredColorScheme=0", "--blink-settings=preferredColorScheme=1"


@pytest.fixture(scope="module")
def page() -> str:
    return html.render(NASTY, NASTY, [view(NASTY), view(NASTY, drawn=False)])


def test_every_text_is_escaped_and_every_tag_closed(page: str) -> None:
    markup = check(page)
    title, subtitle, chart_caption = 2, 1, 1
    table = 5  # caption, two titles, two cells; a folded one has its caption as its summary
    example, part, facts = 4, 3, 2
    first = 2 + facts + chart_caption + 2 * table + example + part + 2  # its heading is the page's; notes and command
    assert markup.texts.count(CLEAN) == title + subtitle + first + (first - chart_caption + 1)
    alts = [found["alt"] for tag, found in markup.attributes if tag == "img"]
    assert alts == [CLEAN] * 8  # of three charts in both schemes, and of two pictures
    assert not [name for _, found in markup.attributes for name in found if name.startswith("on")]


def test_the_test_would_notice_what_is_wrong() -> None:
    whole = html.render("t", "s", [View("v", ("fine",), facts=(("a", "b"),))])
    for wrong in (
        whole.replace("</dl>", "", 1),
        whole.replace("<p>fine</p>", '<img src="https://example.com/x.png">', 1),
        whole.replace("<p>fine</p>", '<p style="background: url(https://example.com)">x</p>', 1),
        whole.replace("<p>fine</p>", "<script>x</script>", 1),
    ):
        assert wrong != whole
        with pytest.raises(AssertionError):
            check(wrong)


def test_the_browser_is_told_to_ask_for_nothing(page: str) -> None:
    metas = [found for tag, found in Markup(page).attributes if tag == "meta"]
    (policy,) = [found["content"] or "" for found in metas if "http-equiv" in found]
    assert policy.startswith("default-src 'none';") and "script-src" not in policy


def test_a_page_begins_with_the_verdict_and_views_have_headings_down_to_their_parts() -> None:
    inner = View("inner", parts=(View("innermost", parts=(View("deep"),)),))
    whole = html.render("t", "s", [View("first", ("found",), parts=(inner,)), View("second", ("more",))])
    markup = check(whole)
    assert [tag for tag in markup.tags if tag[0] == "h" and tag[1:].isdigit()] == ["h1", "h2", "h3", "h4", "h2"]
    assert '<div class="verdict">\n<p>found</p>\n</div>' in whole and "first" not in markup.texts


def test_numbers_are_on_the_right_rows_stand_out_and_long_tables_are_folded(page: str) -> None:
    attributes = check(page).attributes
    assert sum(tag == "td" and found.get("class") == "number" for tag, found in attributes) == 8
    assert sum(tag == "tr" and found.get("class") == "strong" for tag, found in attributes) == 4
    assert Markup(page).tags.count("details") == 2


def test_text_from_right_to_left_stays_in_its_place() -> None:
    text = "\u0645\u0631\u062d\u0628\u0627 \u202eabc"
    whole = html.render("t", "s", [View("v", facts=(("Answer", text),), tables=(Table(("a",), ((text,),)),))])
    attributes = check(whole).attributes
    assert [found.get("dir") for tag, found in attributes if tag == "dd" or found.get("scope") == "row"] == ["auto"] * 2


def test_charts_are_images_of_either_scheme(page: str) -> None:
    images = [found for tag, found in Markup(page).attributes if tag == "img"]
    assert [found.get("class") for found in images[:4]] == ["light", "dark"] * 2
    light, dark = (base64.b64decode((found["src"] or "").partition(",")[2]).decode() for found in images[:2])
    assert SCHEMES["light"].series[0] in light and SCHEMES["dark"].series[0] in dark


def test_a_page_is_written_whole_and_is_the_same_again(tmp_path: Path) -> None:
    file = tmp_path / "new" / "page.html"
    for _ in range(2):
        html.write_page(file, "t", "s", [view()])
        assert file.read_bytes() == html.render("t", "s", [view()]).encode()
    assert list(file.parent.iterdir()) == [file]


def test_a_page_that_cannot_be_written_costs_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"^Cannot write .*page\.html: (File exists|Not a directory)$") as caught:
        html.write_page(tmp_path / "file" / "page.html", "t", "s", [])
    assert caught.value.options == ("output",)


@needs_chromium
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_it_without_complaint_and_without_scrolling_sideways(
    page: str, tmp_path: Path, width: int
) -> None:
    long = html.render("t" * 90, "s" * 90, [view("word" * 60)])
    for whole in (page, long):
        found, console = open_page(whole, tmp_path, width)
        assert console == []
        assert found["width"] == found["scroll"] == width and found["wide"] == []
        assert found["letters"] >= 10


@needs_chromium
def test_a_dark_browser_gets_light_letters_and_charts_for_a_dark_page(page: str, tmp_path: Path) -> None:
    light, dark = (open_page(page, tmp_path, 800, switch)[0] for switch in (LIGHT, DARK))
    assert (light["paper"], dark["paper"]) == ("rgb(255, 255, 255)", "rgb(18, 22, 27)")
    assert (light["ink"], dark["ink"]) == ("rgb(27, 31, 36)", "rgb(232, 235, 239)")
    assert (light["charts"], dark["charts"]) == (["light"] * 3, ["dark"] * 3)
