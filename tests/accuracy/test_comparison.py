"""Figures of a set and their intervals, against what is worked by hand and what simulations show."""

from __future__ import annotations

import numpy as np
import pytest

from iwp_export.accuracy import comparison
from iwp_export.view.figures import Interval

# Three hits, one miss, two false alarms, four rightly answered no.
YES = [True] * 4 + [False] * 6
RIGHT = [1.0, 1, 1, 0, 0, 0, 1, 1, 1, 1]


def test_f1_and_what_pope_reports_beside_it() -> None:
    found = comparison.score(RIGHT, YES)
    assert found.mean == pytest.approx(2 * 0.6 * 0.75 / (0.6 + 0.75))
    assert found.low < found.mean < found.high
    figures = {"accuracy": 0.7, "precision": 0.6, "recall": 0.75, "share of yes": 0.5}
    assert comparison.yes_no_figures(RIGHT, YES) == pytest.approx(figures)
    assert comparison.score([0.0, 0.0], [True, False]).mean == 0
    assert comparison.yes_no_figures([0.0], [True])["precision"] == 0


def test_shares_have_wilson_s_interval_and_other_scores_a_bootstrap_s() -> None:
    assert comparison.score([1.0] * 10, ()).low == pytest.approx(10 / (10 + 1.96**2), abs=1e-4)
    assert comparison.score([0.5] * 10, ()) == Interval(0.5, 0.5, 0.5)


def test_change_and_ratio_of_paired_scores() -> None:
    before, after = [1.0] * 90 + [0.0] * 10, [1.0] * 80 + [0.0] * 18 + [1.0] * 2
    change, relative = comparison.compare(before, after, ())
    assert change.mean == pytest.approx(-0.08)
    assert relative is not None and relative.mean == pytest.approx(0.82 / 0.9)
    # Wilson: 10 of 100 lost .0552 to .1744, 2 of 100 gained .0055 to .0700; squared and added: .0744 and .0145.
    assert change.low == pytest.approx(-0.08 - np.hypot(0.0744, 0.0145), abs=2e-3)
    assert relative.low == pytest.approx(1 + change.low / 0.9, abs=2e-3)


def test_answers_that_did_not_change_are_no_proof_that_none_would() -> None:
    change, relative = comparison.compare([1.0] * 20, [1.0] * 20, ())
    assert change.low == pytest.approx(-(1.96**2) / (20 + 1.96**2), abs=1e-4)
    assert relative is not None and (relative.mean, relative.high) == (1, 1)
    few, many = (comparison.compare(RIGHT * n, RIGHT * n, YES * n)[1] for n in (1, 100))
    assert few is not None and many is not None
    assert few.low < 0.7 < 0.98 < many.low < 1


def test_nothing_is_relative_to_nothing() -> None:
    change, relative = comparison.compare([0.0, 0.0], [1.0, 0.0], ())
    assert (change.mean, relative) == (0.5, None)


@pytest.mark.parametrize("lost", [0.005, 0.1])
def test_the_lower_end_covers_the_truth(lost: float) -> None:
    draw = np.random.default_rng(3)
    low = []
    for _ in range(120):
        before = draw.random(150) < 0.9
        after = before & ~(draw.random(150) < lost / 0.9)
        low.append(comparison.compare(before.astype(float).tolist(), after.astype(float).tolist(), ())[0].low)
    assert np.mean(np.array(low) <= -lost) >= 0.94
