"""Scoring rules: what an answer is worth, from 0 to 1, given the right ones.

| rule | for | source |
|---|---|---|
| exact | answers of one form | - |
| vqa | VQAv2, TextVQA, OK-VQA: what each annotator said | arXiv:1505.00468 and its evaluation code |
| anls | DocVQA, ST-VQA, InfoVQA: text that is read | arXiv:1905.13648 |
| yesno | POPE: yes or no, F1 of the set | arXiv:2305.10355 and its evaluation code |
| relaxed | ChartQA, PlotQA: numbers | arXiv:2203.10244, Sec. 5.1 |
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iwp_export.accuracy.vqa_answers import normalised
from iwp_export.errors import DataError, SettingsError
from iwp_export.questions import Question

VQA_AGREE = 3
"""Annotators who must have said the same for an answer to be worth 1."""
ANLS_LEAST = 0.5
"""Similarity below which an answer is worth nothing."""
RELAXED = 0.05
"""How far a number may be from the right one, as a share of it."""
YES, NO = "yes", "no"
NO_WORDS = frozenset(("No", "not", "no"))
"""Words by which POPE's evaluation code tells a no; every other answer is a yes."""


@dataclass(frozen=True)
class Rule:
    """A scoring rule.

    Attributes:
        name: of the rule.
        title: what its figure is called.
        score: worth of an answer from 0 to 1, from the answer and the right ones.
        least: right answers that a question needs.
        f1: whether the set's figure is F1 of yes, in place of the mean.
    """

    name: str
    title: str
    score: Callable[[str, Sequence[str]], float]
    least: int = 1
    f1: bool = False

    def check(self, questions: Sequence[Question]) -> bool:
        """Whether questions have the answers that the rule needs; false where none has any answer.

        Raises:
            DataError: there are no questions, only some have answers, or a question has other answers than the rule
                needs.
        """
        if not questions:
            raise DataError("accuracy needs one question at least")
        without = sum(not question.accepted for question in questions)
        if without == len(questions):
            return False
        if without:
            raise DataError(f"either all questions have an `answer` or none: {without} of {len(questions)} have none")
        for number, question in enumerate(questions, 1):
            if len(question.accepted) < self.least:
                raise DataError(
                    f"question {number} has {len(question.accepted)} of the {self.least} annotators' answers that the "
                    f"rule {self.name} needs at least: give them as `answers`, or take the rule exact",
                    options=("score",),
                )
            if self.f1 and question.accepted[0].strip().lower() not in (YES, NO):
                raise DataError(
                    f"question {number} has the answer {question.accepted[0]!r}: the rule {self.name} needs yes or no",
                    options=("score",),
                )
        return True


def find_rule(name: str) -> Rule:
    """A rule by its name.

    Raises:
        SettingsError: there is none of that name.
    """
    if name not in RULES:
        raise SettingsError(f"no scoring rule {name!r}; there are: {', '.join(RULES)}", options=("score",))
    return RULES[name]


def exact(answer: str, right: Sequence[str]) -> float:
    """1 if the answer is a right one to the letter, else 0."""
    return float(answer in right)


def vqa(answer: str, right: Sequence[str]) -> float:
    """Soft accuracy: min(agreeing annotators / 3, 1), averaged over the sets that leave one annotator out.

    Answers are normalised first, see `vqa_answers`. Among ten annotators, 1 / 2 / 3 / 4 agreeing give .3 / .6 / .9 / 1.
    """
    mine, said = normalised(answer), [normalised(each) for each in right]
    agreeing = said.count(mine)
    return sum(min((agreeing - (each == mine)) / VQA_AGREE, 1.0) for each in said) / len(said)


def anls(answer: str, right: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one answer: 1 - distance / longer length, 0 below 0.5; the best.

    Capitals and repeated white space do not count. A similarity of exactly 0.5 does, as in lmms-eval; the paper's
    formula leaves it out.
    """
    return max(_similarity(_plain(answer), _plain(each)) for each in right)


def yesno(answer: str, right: Sequence[str]) -> float:
    """1 if the answer says yes where the right one is yes, or no where it is no."""
    return float(says_yes(answer) == is_yes(right))


def says_yes(answer: str) -> bool:
    """Whether an answer is counted as yes: its first sentence has no word of `NO_WORDS`."""
    return not NO_WORDS & set(answer.split(".")[0].replace(",", "").split())


def is_yes(right: Sequence[str]) -> bool:
    """Whether the right answer is yes."""
    return right[0].strip().lower() == YES


def relaxed(answer: str, right: Sequence[str]) -> float:
    """1 if the answer is a number within 5 % of a right one, or a right text without regard to capitals."""
    return float(any(_close(answer, each) for each in right))


def _close(answer: str, right: str) -> bool:
    said, wanted = _number(answer), _number(right)
    if said is None or not wanted:  # of 0 there is no share
        return answer.strip().lower() == right.strip().lower()
    return abs(said - wanted) / abs(wanted) <= RELAXED


def _number(text: str) -> float | None:
    """A number, 12 % as 0.12."""
    percent = text.strip().endswith("%")
    try:
        value = float(text.strip().rstrip("%"))
    except ValueError:
        return None
    return (value / 100 if percent else value) if math.isfinite(value) else None


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip().lower())


def _similarity(one: str, other: str) -> float:
    longer = max(len(one), len(other))
    similarity = 1 - edit_distance(one, other) / longer if longer else 1.0
    return similarity if similarity >= ANLS_LEAST else 0.0


def edit_distance(one: str, other: str) -> int:
    """Levenshtein distance: characters to insert, delete or replace."""
    row = list(range(len(other) + 1))
    for number, mine in enumerate(one, 1):
        last, row[0] = row[0], number
        for place, theirs in enumerate(other, 1):
            last, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, last + (mine != theirs))
    return row[-1]


RULES = {
    rule.name: rule
    for rule in (
        Rule("exact", "right answers", exact),
        Rule("vqa", "VQA accuracy", vqa, least=VQA_AGREE + 1),
        Rule("anls", "ANLS", anls),
        Rule("yesno", "F1 of yes", yesno, f1=True),
        Rule("relaxed", "relaxed accuracy", relaxed),
    )
}
"""By name."""
