"""Where made-up curves bend, by the rules that a report states."""

from __future__ import annotations

import pytest

from iwp_export.monitors.knee import knee, read_between, share_read, warnings
from tests.monitors.made_up import monitors


@pytest.mark.parametrize(
    ("depth", "between"),
    [
        ((0.2, 0.2, 0.3, 0.6, 1.0), (1, 4)),  # the last layer still needs the image
        ((0.2, 0.2, 0.98, 0.99, 1.0), (1, 2)),
        ((0.2, 0.5, 1.0, 0.5, 1.0), (0, 2)),  # a later dip does not move either end
        ((0.96, 0.97, 0.98, 0.99, 1.0), None),  # blind is as good
    ],
)
def test_where_the_image_is_read(depth: tuple[float, ...], between: tuple[int, int] | None) -> None:
    assert read_between(monitors(depth)) == between


def test_the_share_that_is_read_before_a_layer() -> None:
    found = monitors((0.2, 0.2, 0.3, 0.6, 1.0))
    shares = [share_read(found, layer) for layer in range(5)]
    assert shares == pytest.approx([0, 0, 0.125, 0.5, 1])
    assert share_read(found, 7) is None


def test_pruning_where_the_image_has_been_read_is_warned_of() -> None:
    depth = (0.2, 0.2, 0.98, 0.99, 1.0)
    assert warnings(monitors(depth, pruning_layer=1)) == []
    (line,) = warnings(monitors(depth, pruning_layer=2))
    assert "has read the image before layer 2" in line and "98 % of what the image brings" in line
    assert "proves nothing" in line


def test_questions_that_need_no_image_are_warned_of() -> None:
    (line,) = warnings(monitors((0.96, 0.97, 0.98, 0.99, 1.0)))
    assert "do not need the image (100.0 % accuracy with every token, 96.0 % without the image)" in line


@pytest.mark.parametrize(
    ("budget", "bend"),
    [
        ({1.0: 1.0, 0.5: 0.95, 0.2: 0.94}, 0.5),
        ({1.0: 0.8, 0.5: 0.77, 0.2: 0.76}, 0.2),  # of the unpruned score, whatever that is
        ({1.0: 1.0, 0.5: 0.8, 0.2: 0.99}, 1.0),  # a lucky budget below a bad one is no knee
    ],
)
def test_the_knee(budget: dict[float, float], bend: float) -> None:
    assert knee(monitors((0.2, 0.2, 0.2, budget[1.0]), budget)).keep == bend


def test_a_budget_past_the_knee_is_warned_of() -> None:
    budget = {1.0: 1.0, 0.5: 0.98, 0.2: 0.7}
    assert warnings(monitors(budget=budget, keep=0.5)) == []
    (line,) = warnings(monitors(budget=budget, keep=0.2))
    assert "Keep 0.2 is past the knee: accuracy is 70.0 % at keep 0.2 and 98.0 % at 0.5" in line
