"""Blocks of the report: everything measured is there, and a browser shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from iwp_export.accuracy.measure import measure_accuracy
from iwp_export.accuracy.page import blocks
from iwp_export.view.page import Page, Section
from tests.accuracy.made_up import Parrot, questions
from tests.view.browser import needs_chromium, open_page


def page(folder: Path, rule: str, answers: list[Any]) -> str:
    told = {1.0: ["yes", "no"] * 20, 0.3: ["yes", "yes"] + ["yes", "no"] * 19, 0.1: ["no <b>"] * 40}
    parrot: Any = Parrot(told)
    asked = questions(folder, answers, ["a kind of question", "<i>another</i>"])
    found = measure_accuracy(parrot, asked, [0.3, 0.1], rule, data="q & a.jsonl")
    return Page("Report", "tiny", [Section("Accuracy", blocks(found))]).html()


@pytest.mark.parametrize(
    ("rule", "answers", "texts"),
    [
        ("exact", ["yes", "no"] * 20, ["right answers", "97.5 % (", "&lt;i&gt;another", "Right", "Of keep 1"]),
        ("yesno", ["yes", "no"] * 20, ["F1 of yes", "Precision", "Share of yes"]),
        ("exact", [None] * 40, ["without answers", "Same answer", "no answers"]),
    ],
)
def test_the_page_has_what_was_measured(tmp_path: Path, rule: str, answers: list[Any], texts: list[str]) -> None:
    html = page(tmp_path, rule, answers)
    for text in [*texts, "q &amp; a.jsonl", "<svg", "data:image/png", "No. 2"]:
        assert text in html, text
    assert "<i>" not in html and "<b>" not in html


@needs_chromium
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_it(tmp_path: Path, width: int) -> None:
    html = page(tmp_path, "yesno", ["yes", "no"] * 20)
    found, console = open_page(html, tmp_path, width)
    assert console == []
    assert found["scroll"] == width and found["wide"] == []
