"""Scores on cases worked by hand, intervals against simulations, and the one meaning of a drop."""

from __future__ import annotations

import numpy as np
import pytest

from iwp_export.accuracy.scoring import SCORES, check_answers, check_drop, check_limit, compare, normalise
from iwp_export.errors import DataError, SettingsError
from iwp_export.questions import Question


@pytest.mark.parametrize(
    ("score", "answer", "right", "holds"),
    [
        ("exact", "7", ["7"], True),
        ("exact", "7.", ["7"], False),
        ("exact", "seven", ["7", "seven"], True),
        ("normalised", "The RED.", ["blue", "red"], True),
        ("normalised", "seven", ["7"], True),
        ("normalised", "redder", ["red"], False),
        ("relaxed", "105", ["100"], True),
        ("relaxed", "94.9", ["100"], False),
        ("relaxed", "12%", ["0.12"], True),
        ("relaxed", "0", ["0"], True),
        ("relaxed", "0.01", ["0"], False),  # of 0 there is no share
        ("relaxed", "-9.6", ["-10"], True),
        ("relaxed", "Canada", ["canada"], True),
        ("relaxed", "inf", ["100"], False),
        ("relaxed", "2009 or so", ["2009"], False),
    ],
)
def test_an_answer_is_right(score: str, answer: str, right: list[str], holds: bool) -> None:
    assert SCORES[score](answer, right) is holds


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("A Dog", "dog"),
        ("two dogs!", "2 dogs"),
        ("none", "0"),
        ("1,000", "1000"),
        ("3.5 m.", "3.5 m"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("don't", "dont"),
        ("in the\nU.S.", "in us"),
    ],
)
def test_the_normal_form(answer: str, form: str) -> None:
    assert normalise(answer) == form


def test_all_questions_have_answers_or_none_has() -> None:
    some, none = Question((), "what ?", ("x",)), Question((), "what ?")
    assert check_answers([some]) and not check_answers([none])
    for questions, message in (([], "one question at least"), ([some, none], "1 of 2 have none")):
        with pytest.raises(DataError, match=message):
            check_answers(questions)


def test_change_and_ratio_of_paired_scores() -> None:
    before, after = [1.0] * 90 + [0.0] * 10, [1.0] * 80 + [0.0] * 18 + [1.0] * 2
    change, relative = compare(before, after)
    assert change.mean == pytest.approx(-0.08)
    assert relative is not None and relative.mean == pytest.approx(0.82 / 0.9)
    # Wilson: 10 of 100 lost .0552 to .1744, 2 of 100 gained .0055 to .0700; squared and added: .0744 and .0145.
    assert change.low == pytest.approx(-0.08 - np.hypot(0.0744, 0.0145), abs=2e-3)
    assert relative.low == pytest.approx(1 + change.low / 0.9, abs=2e-3)
    change, relative = compare([0.0, 0.0], [1.0, 0.0])
    assert (change.mean, relative) == (0.5, None)  # nothing is relative to nothing


def test_answers_that_did_not_change_are_no_proof_that_none_would() -> None:
    change, relative = compare([1.0] * 20, [1.0] * 20)
    assert change.low == pytest.approx(-(1.96**2) / (20 + 1.96**2), abs=1e-4)
    assert relative is not None and (relative.mean, relative.high) == (1, 1)


@pytest.mark.parametrize("lost", [0.005, 0.1])
def test_the_lower_end_covers_the_truth(lost: float) -> None:
    draw = np.random.default_rng(3)
    low = []
    for _ in range(120):
        before = draw.random(150) < 0.9
        after = before & ~(draw.random(150) < lost / 0.9)
        low.append(compare(before.astype(float).tolist(), after.astype(float).tolist())[0].low)
    assert np.mean(np.array(low) <= -lost) >= 0.94


@pytest.mark.parametrize("answered", [True, False])
def test_a_drop_is_within_its_limit_if_the_lower_end_shows_it(answered: bool) -> None:
    def passed(count: int, lost: int, allowed: float = 0.05) -> bool:
        before = [1.0] * count if answered else None
        return check_drop(before, [0.0] * lost + [1.0] * (count - lost), allowed).passed

    assert check_drop([1.0] * 9, [1.0] * 9, 0.05).needed == 73  # 1.96^2 * 0.95 / 0.05
    assert not passed(72, 0) and passed(73, 0)
    assert not passed(200, 8) and passed(200, 3)
    assert not check_drop([0.0] * 400, [1.0] * 400, 0.05).passed  # the unpruned model is right nowhere


@pytest.mark.parametrize("wrong", [0, 40])
def test_fewer_questions_than_needed_cannot_pass(wrong: int) -> None:
    for right in range(60, 90):
        scores = [1.0] * right + [0.0] * wrong
        drop = check_drop(scores, scores, 0.05)
        assert drop.passed == (drop.questions >= drop.needed)


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_limits_that_mean_nothing_are_refused(value: float) -> None:
    with pytest.raises(SettingsError, match="max_drop must be a share above 0 and below 1") as refused:
        check_limit("max_drop", value)
    assert refused.value.options == ("max_drop",)
