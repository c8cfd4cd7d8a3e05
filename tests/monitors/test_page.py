"""The monitors' words, page and JSON, from figures alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from iwp_export.bundle.schema import from_json, to_json
from iwp_export.monitors.figures import Monitors
from iwp_export.monitors.page import blocks, picture
from iwp_export.monitors.words import describe, layer_rows
from iwp_export.view.page import Page
from tests.monitors.made_up import monitors
from tests.view.browser import needs_chromium, open_page
from tests.view.markup import check


@pytest.mark.parametrize("answers", [True, False])
def test_figures_are_json(answers: bool) -> None:
    found = monitors(answers=answers)
    assert from_json(Monitors, json.loads(json.dumps(to_json(found))), "") == found
    assert found.measure == ("accuracy" if answers else "agreement")


def test_words_begin_with_what_is_wrong() -> None:
    text = describe(monitors((0.2, 0.98, 0.98, 0.99, 1.0)))
    assert text.startswith("The model has read the image before layer 1")
    assert "The image is read in layer 0; 98 % of what it brings before layer 1, which drops tokens." in text
    assert (
        "In the last layer 50 % of the text's attention is on visual tokens, with pruning 25 %, on 50 % of them" in text
    )
    rows = layer_rows(monitors())[1]
    assert [row[1] for row in rows] == ["100 %", "50 %", "50 %", "50 %"]


@pytest.mark.parametrize("answers", [True, False])
def test_a_page_and_its_charts(answers: bool) -> None:
    pytest.importorskip("matplotlib", reason="the extra [report] is not installed")
    found = monitors(answers=answers)
    markup = check(Page("title", "", [*blocks(found)]).html())
    for name in ("depth", "budget", "entropy", "visual"):
        assert f"monitor-{name}-line-0" in markup.ids
    assert "monitor-entropy-band-1" in markup.ids
    assert len(picture(found)) == 4


def test_figures_need_no_torch() -> None:
    code = (
        "import sys, iwp_export.monitors.page, iwp_export.monitors.knee; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_chromium
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_it(tmp_path: Path, width: int) -> None:
    found, console = open_page(Page("title", "", [*blocks(monitors())]).html(), tmp_path, width)
    assert console == []
    assert found["scroll"] == width and found["wide"] == []
