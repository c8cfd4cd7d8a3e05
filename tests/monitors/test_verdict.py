"""The monitors' words, view and JSON, from figures alone."""

from __future__ import annotations

import json

import pytest

from iwp_export.bundle.schema import from_json, to_json
from iwp_export.monitors.figures import Monitors
from iwp_export.monitors.verdict import shares_read, view, warnings
from iwp_export.view import terminal
from tests.monitors.made_up import monitors

UNNEEDED = (0.96, 0.97, 0.98, 0.99, 1.0)
"""Blind is as good."""


@pytest.mark.parametrize("answers", [True, False])
def test_figures_are_json(answers: bool) -> None:
    found = monitors(answers=answers)
    assert from_json(Monitors, json.loads(json.dumps(to_json(found))), "") == found


@pytest.mark.parametrize(
    ("depth", "said"),
    [
        (
            (0.2, 0.2, 0.3, 0.6, 1.0),
            "from layer 1 to layer 3; 0.0 % of what it brings before layer 1",
        ),  # needed to the end
        ((0.2, 0.2, 0.98, 0.99, 1.0), "in layer 1; 0.0 % of what it brings before layer 1"),
        ((0.2, 0.5, 1.0, 0.5, 1.0), "from layer 0 to layer 1; 37.5 % of"),  # a later dip does not move either end
        (UNNEEDED, ""),
    ],
)
def test_where_the_image_is_read(depth: tuple[float, ...], said: str) -> None:
    sentences = view(monitors(depth)).sentences
    assert all(said in sentence for sentence in sentences) and len(sentences) == bool(said)


def test_the_share_that_is_read_before_a_layer() -> None:
    shares = shares_read(monitors((0.2, 0.2, 0.3, 0.6, 1.0)))
    assert shares == pytest.approx({0: 0, 1: 0, 2: 0.125, 3: 0.5, 4: 1})


def test_pruning_where_the_image_has_been_read_is_warned_of() -> None:
    depth = (0.2, 0.2, 0.98, 0.99, 1.0)
    assert warnings(monitors(depth, pruning_layer=1)) == []
    (line,) = warnings(monitors(depth, pruning_layer=2))
    assert "has read the image before layer 2" in line and "97.5 % of what the image brings" in line
    assert "proves nothing" in line


def test_questions_that_need_no_image_are_warned_of() -> None:
    (line,) = warnings(monitors(UNNEEDED))
    assert "do not need the image (100.0 % accuracy with every token, 96.0 % without the image)" in line


@pytest.mark.parametrize("answers", [True, False])
def test_the_view(answers: bool) -> None:
    shown = view(monitors(answers=answers))
    assert [len(chart.series) for chart in shown.charts] == [2]
    (table,) = shown.tables
    assert [row[4] for row in table.rows] == ["100.0 %", "50.0 %", "50.0 %", "50.0 %", ""]
    text = terminal.render([shown])
    assert ("accuracy" in text) == answers and "every token" in text and "40 questions of some questions" in text
