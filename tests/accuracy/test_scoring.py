"""Scoring rules on cases worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from iwp_export.accuracy.scoring import RULES, edit_distance, find_rule
from iwp_export.accuracy.vqa_answers import normalised
from iwp_export.errors import DataError, SettingsError
from iwp_export.questions import Question

TEN = ["red", "red", "red", "blue", "blue", "pink", "tan", "grey", "gold", "teal"]


def asked(*answers: str) -> Question:
    return Question((Path("a.png"),), "what ?", answers[0] if answers else None, answers=answers)


@pytest.mark.parametrize(
    ("rule", "answer", "right", "worth"),
    [
        ("exact", "7", ["7"], 1),
        ("exact", "7.", ["7"], 0),
        ("exact", "seven", ["7", "seven"], 1),
        # 3 of 10 said red: without one of those 2/3, without one of the other 7 3/3: (3 * 2/3 + 7) / 10.
        ("vqa", "red", TEN, 0.9),
        # 2 of 10: (2 * 1/3 + 8 * 2/3) / 10. 1 of 10: (0 + 9 * 1/3) / 10.
        ("vqa", "blue", TEN, 0.6),
        ("vqa", "pink", TEN, 0.3),
        ("vqa", "black", TEN, 0),
        ("vqa", "The RED.", TEN, 0.9),
        ("vqa", "red", ["red"] * 4 + ["blue"] * 6, 1),
        ("vqa", "Yes", ["yes"] * 10, 1),
        ("anls", "hello", ["hello"], 1),
        ("anls", "Hallo ", ["hello"], 0.8),
        ("anls", "main  street", ["Main Street", "Main"], 1),
        ("anls", "abcd", ["abxy"], 0.5),
        ("anls", "abcde", ["abxyz"], 0),  # similarity 2/5
        ("anls", "", ["x"], 0),
        ("anls", "", [""], 1),
        ("yesno", "Yes, there is.", ["yes"], 1),
        ("yesno", "No.", ["yes"], 0),
        ("yesno", "There is not a dog", ["No"], 1),
        ("yesno", "Yes. But no dog.", ["yes"], 1),  # the first sentence counts
        ("yesno", "maybe", ["no"], 0),  # what is no no is a yes
        ("relaxed", "105", ["100"], 1),
        ("relaxed", "94.9", ["100"], 0),
        ("relaxed", "12%", ["0.12"], 1),
        ("relaxed", "0", ["0"], 1),
        ("relaxed", "0.01", ["0"], 0),  # of 0 there is no share
        ("relaxed", "-9.6", ["-10"], 1),
        ("relaxed", "Canada", ["canada"], 1),
        ("relaxed", "inf", ["100"], 0),
        ("relaxed", "2009 or so", ["2009"], 0),
    ],
)
def test_an_answer_is_worth(rule: str, answer: str, right: list[str], worth: float) -> None:
    assert RULES[rule].score(answer, right) == pytest.approx(worth)


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
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("in the\nU.S.", "in us"),
    ],
)
def test_vqa_s_normal_form(answer: str, form: str) -> None:
    assert normalised(answer) == form


@pytest.mark.parametrize(("one", "other", "edits"), [("kitten", "sitting", 3), ("", "abc", 3), ("ab", "ba", 2)])
def test_edit_distance(one: str, other: str, edits: int) -> None:
    assert edit_distance(one, other) == edit_distance(other, one) == edits


def test_rules_say_what_answers_they_need() -> None:
    assert not find_rule("exact").check([asked(), asked()])
    assert find_rule("vqa").check([asked(*TEN)])
    for rule, questions, message in (
        ("exact", [], "one question at least"),
        ("exact", [asked("x"), asked()], "1 of 2 have none"),
        ("vqa", [asked(*TEN), asked("red")], "question 2 has 1 of the 4 annotators' answers"),
        ("yesno", [asked("yes"), asked("perhaps")], "question 2 has the answer 'perhaps'"),
    ):
        with pytest.raises(DataError, match=message):
            find_rule(rule).check(questions)
    with pytest.raises(SettingsError, match="no scoring rule 'f1'; there are: exact, vqa"):
        find_rule("f1")
