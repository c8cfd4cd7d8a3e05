"""A calibration's page: what it says, that nothing gets out of it, and how it looks to a browser."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from iwp_export.bundle.recipe import Objective, Recipe
from iwp_export.calibrator.figures import Kind, entries
from iwp_export.calibrator.page import HOW_TO_READ, Example, make_page, write_page
from iwp_export.view import page as html
from iwp_export.view.figures import interval
from tests.calibrator.made_up import PAPER, nasty_examples, recipe_of_40
from tests.view.browser import needs_chromium, open_page
from tests.view.markup import Markup, check

pytest.importorskip("matplotlib", reason="the extra [report] is not installed")


@pytest.fixture(scope="module")
def whole() -> str:
    return make_page(recipe_of_40(), nasty_examples()).html()


def choose(recipe: Recipe, role: str) -> Recipe:
    """The recipe with the first candidate of a role chosen."""
    chosen = next(figures for figures in recipe.candidates if figures.role == role)
    figures = tuple(replace(each, chosen=each is chosen) for each in recipe.candidates)
    return replace(recipe, settings=chosen.settings, candidates=figures)


def marker_counts(page: str, chart: str) -> dict[str, int]:
    """Markers of each series of a chart."""
    (markup,) = [each for each in re.findall("<svg.*?</svg>", page, re.DOTALL) if f'id="{chart}-figure_1"' in each]
    groups = ElementTree.fromstring(markup).iter("g")
    points = {each.get("id", ""): each for each in groups if each.get("id", "").startswith(f"{chart}-points-")}
    return {name.removeprefix(f"{chart}-points-"): len(list(each.iter("use"))) for name, each in points.items()}


def test_a_page_is_whole_and_asks_for_nothing(whole: str) -> None:
    markup = check(whole)
    text = " ".join(markup.texts)
    order = (recipe_of_40().verdict[0], "The chosen settings", "The 40 candidates", "Sample 1", HOW_TO_READ[0])
    places = [markup.texts.index(each) for each in order]
    assert places == sorted(places)
    assert all(sentence in markup.texts for sentence in HOW_TO_READ)
    assert "https://example.com" in text  # a prompt's, as text
    assert "<script>alert(\"1\")</script> & 'quotes' </dd></dl>\ufffd[31m \ufffd \u202eflipped" in markup.texts
    assert "W" * 400 in markup.texts and "(nothing)" in markup.texts  # an empty answer


def test_three_samples_are_shown_before_and_after(whole: str) -> None:
    markup = check(whole)
    pictures = [found for tag, found in markup.attributes if tag == "img"]
    assert len(pictures) == 6 and {found["width"] for found in pictures} == {"480"}
    assert "Sample 3" in markup.texts and "a fourth, which is not shown" not in markup.texts
    assert markup.texts.count("Right answer") == 2  # the second sample has none


def test_the_chart_has_a_marker_for_each_candidate(whole: str) -> None:
    kinds = [entry.kind for entry in entries(recipe_of_40())]
    names: tuple[Kind, ...] = ("dropped", "candidate", "control", "default", "chosen")
    wanted = {str(number): kinds.count(name) for number, name in enumerate(names)}
    assert wanted["2"] == 2 and wanted["3"] == wanted["4"] == 1 and sum(wanted.values()) == 40
    assert marker_counts(whole, "cost-agreement") == marker_counts(whole, "cost-accuracy") == wanted


def test_without_right_answers_there_is_one_chart_and_no_accuracy() -> None:
    page = make_page(recipe_of_40(accuracy=False), ()).html()
    assert page.count("<svg") == 1 and "Sample 1" not in page and "Accuracy" not in page
    check(page)


def test_candidates_are_in_order_and_the_dropped_ones_folded(whole: str) -> None:
    recipe = recipe_of_40()
    tried = entries(recipe)
    dropped = [entry for entry in tried if entry.kind == "dropped"]
    assert tried[-len(dropped) :] == dropped and [entry.number for entry in tried] == list(range(1, 41))
    for group in (tried[: -len(dropped)], *([e for e in dropped if e.figures.samples == rung] for rung in (24, 8))):
        assert len(group) > 4 and group == sorted(group, key=lambda entry: entry.figures.kl)
    assert [entry.figures.samples for entry in dropped] == sorted((e.figures.samples for e in dropped), reverse=True)
    _, table, folded = re.findall("<tbody>.*?</tbody>", whole)
    assert (table.count("<tr"), folded.count("<tr")) == (40 - len(dropped), len(dropped))
    assert all(entry.figures.samples < 96 for entry in dropped) and "paper" not in folded and "control" not in folded
    assert f"<summary>{len(dropped)} candidates dropped in earlier rounds</summary><figure>" in whole


@pytest.mark.parametrize(("objective", "sign"), [("agreement", -1), ("accuracy", -1), ("kl", 1)])
def test_the_order_is_the_objective_s(objective: Objective, sign: int) -> None:
    recipe = recipe_of_40()
    tried = entries(replace(recipe, search=replace(recipe.search, objective=objective)))
    values = [sign * getattr(entry.figures, objective) for entry in tried if entry.kind != "dropped"]
    assert values == sorted(values)


def test_the_chosen_settings_stand_beside_the_paper_s() -> None:
    page = make_page(recipe_of_40(), ()).html()
    table = Markup(page[: page.index("<details>")]).texts
    at = table.index("importance")
    assert table[at : at + 3] == ["importance", "value_centred", "kernel_value"] and "keep" not in table


def test_where_the_paper_s_settings_are_chosen_the_page_says_so() -> None:
    recipe = choose(recipe_of_40(), "default")
    assert recipe.settings == PAPER
    page = make_page(recipe, nasty_examples()).html()
    texts = check(page).texts
    assert "They are the paper's." in texts and "★ chosen, the paper's settings" in texts
    assert "The chosen settings are the paper's, so before and after are the same." in texts
    assert marker_counts(page, "cost-agreement")["4"] == 1 and "3" not in marker_counts(page, "cost-agreement")


def test_a_control_that_is_chosen_is_called_one() -> None:
    page = make_page(choose(recipe_of_40(), "control"), ()).html()
    (row,) = [text.replace("\u00a0", " ") for text in check(page).texts if text.startswith("★ chosen, control · ")]
    assert "importance random" in row and "penalty 0" in row


def test_a_model_s_name_cannot_leave_its_place() -> None:
    name = '</title><script>1</script> a\'b; rm -rf "x"'
    markup = check(make_page(recipe_of_40(name=name), ()).html())
    assert f"Calibration of {name}" in markup.texts
    (command,) = [text for text in markup.texts if text.startswith("iwp-export </title>") or "--recipe" in text]
    assert "'</title><script>1</script> a'\"'\"'b; rm -rf \"x\"'" in command


def test_a_recipe_of_one_candidate_has_a_page() -> None:
    recipe = choose(recipe_of_40(), "default")
    alone = tuple(figures for figures in recipe.candidates if figures.chosen)
    check(make_page(replace(recipe, candidates=alone), ()).html())


def test_the_same_recipe_is_the_same_file(tmp_path: Path, whole: str) -> None:
    write_page(tmp_path / "page.html", recipe_of_40(), nasty_examples())
    assert (tmp_path / "page.html").read_bytes() == whole.encode()
    assert len(whole) < 200_000


def test_examples_may_bring_png_files_as_they_are() -> None:
    first = nasty_examples()[0]
    image = html.Picture(_png(), "x")
    example = Example("p", "a", image.png, image.png, first.answer_before, first.answer_after)
    assert make_page(recipe_of_40(), (example,)).html().count(image.html().split('"')[1]) == 2


def _png() -> bytes:
    from tests.view.test_page import png

    return png(5, 4)


@pytest.mark.parametrize(("share", "samples"), [(0.0, 8), (1.0, 8), (0.5, 96), (1 / 3, 1)])
def test_an_interval_holds_its_share_and_has_a_width(share: float, samples: int) -> None:
    low, high = interval(share, samples)
    assert 0 <= low <= share <= high <= 1 and high - low > 0.1


def test_an_interval_is_wilson_s() -> None:
    assert interval(0.5, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)


@needs_chromium
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_it_without_complaint_and_without_scrolling_sideways(
    whole: str, tmp_path: Path, width: int
) -> None:
    found, console = open_page(whole, tmp_path, width)
    assert console == []
    assert found["width"] == found["scroll"] == width and found["wide"] == []
    assert found["letters"] >= 10  # pixels of a line of text in a chart


@needs_chromium
def test_a_dark_browser_gets_light_letters_on_a_dark_page(whole: str, tmp_path: Path) -> None:
    light, _ = open_page(whole, tmp_path, 800, "--blink-settings=preferredColorScheme=1")
    dark, _ = open_page(whole, tmp_path, 800, "--blink-settings=preferredColorScheme=0")
    assert (light["paper"], dark["paper"]) == ("rgb(255, 255, 255)", "rgb(18, 22, 27)")
    assert light["ink"] == "rgb(27, 31, 36)" and dark["ink"] == "rgb(232, 235, 239)"
