"""Scores of answers, what pruning leaves of a set's score, and whether that is within a limit.

| score | an answer is worth 1 if it is |
|---|---|
| exact | a right one to the letter |
| normalised | a right one in the normal form of VQA's evaluation code, see `normalise` |
| relaxed | a number within 5 % of a right one, or a right text but for capitals (ChartQA, arXiv:2203.10244, Sec. 5.1) |

Public benchmarks have rules of their own; lmms-eval has them, see `iwp_export.harnesses`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iwp_export.errors import DataError, SettingsError
from iwp_export.questions import Question
from iwp_export.view.figures import Interval, bootstrap_figure, interval, samples_for, share_of

Floats = npt.NDArray[np.float64]
RELAXED = 0.05
"""How far a number may be from the right one, as a share of it."""
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = {
    word: str(value)
    for value, word in enumerate("zero one two three four five six seven eight nine ten".split())  # noqa: SIM905
} | {"none": "0"}


SCORES: Mapping[str, Callable[[str, Sequence[str]], bool]] = {
    "exact": lambda answer, right: answer in right,
    "normalised": lambda answer, right: normalise(answer) in map(normalise, right),
    "relaxed": lambda answer, right: any(_close(answer, each) for each in right),
}
"""Whether an answer is right, from the answer and the right ones."""


def check_answers(questions: Sequence[Question]) -> bool:
    """Whether questions have right answers: all of them do, or none does.

    Raises:
        DataError: there are no questions, or only some have answers.
    """
    if not questions:
        raise DataError("accuracy needs one question at least")
    without = sum(not question.answers for question in questions)
    if 0 < without < len(questions):
        raise DataError(f"either all questions have an `answer` or none: {without} of {len(questions)} have none")
    return not without


def normalise(answer: str) -> str:
    """Lower case, no articles, no punctuation, numbers up to ten as digits (visualqa.org/evaluation, vqaEval.py).

    A mark between words leaves a space, one beside a space goes; so do periods but for those before a digit.
    Apostrophes go too, where VQA puts missing ones back by a table of contractions.
    """
    text = " ".join(answer.split())
    in_number = re.search(r"\d,\d", text) is not None
    out = text
    for mark in PUNCTUATION:
        goes = in_number or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if goes else " ")
    words = re.sub(r"\.(?!\d)|'", "", out).lower().split()
    return " ".join(NUMBERS.get(word, word) for word in words if word not in ARTICLES)


def _close(answer: str, right: str) -> bool:
    said, wanted = _number(answer), _number(right)
    if said is None or not wanted:  # of 0 there is no share
        return answer.strip().lower() == right.strip().lower()
    return abs(said - wanted) / abs(wanted) <= RELAXED


def _number(text: str) -> float | None:
    """A number, 12 % as 0.12."""
    per_cent = text.strip().endswith("%")
    try:
        value = float(text.strip().rstrip("%"))
    except ValueError:
        return None
    return (value / 100 if per_cent else value) if math.isfinite(value) else None


def compare(before: Sequence[float], after: Sequence[float]) -> tuple[Interval, Interval | None]:
    """How a set's score changed: the difference, and the score divided by the one before.

    A bootstrap over answers of which none or few changed is too narrow: of none it has no width, as if a handful of
    questions proved that nothing is lost. So both ends are at least as far away as Newcombe's "square-and-add" interval
    of the shares that lost and gained (Statistics in Medicine 17, 1998, 2635-2650, method 10 without its correction for
    correlation).

    Returns:
        Of scores of the same questions, from 0 to 1: after less before, and after divided by it, None where it is 0.
    """
    both, count = np.array([before, after], float), len(before)
    base, mean = (float(value) for value in both.mean(1))
    lost, gained = (float(np.clip(sign * (both[1] - both[0]), 0, 1).mean()) for sign in (-1, 1))
    (lost_low, lost_high), (gained_low, gained_high) = interval(lost, count), interval(gained, count)
    worst = max(mean - math.hypot(lost_high - lost, gained - gained_low), 0.0)
    best = min(mean + math.hypot(gained_high - gained, lost - lost_low), 1.0)

    def widened(figure: Callable[[Floats], Floats], low: float, high: float) -> Interval:
        found = bootstrap_figure(both, figure)
        assert found is not None  # neither figure divides by 0
        return Interval(found.mean, min(found.low, low), max(found.high, high))

    change = widened(lambda means: means[1] - means[0], worst - base, best - base)
    return change, widened(lambda means: means[1] / means[0], worst / base, best / base) if base > 0 else None


@dataclass(frozen=True)
class Drop:
    """What pruning leaves of a score, against what it may cost.

    Attributes:
        allowed: share of the unpruned score that may be lost.
        answered: whether the questions have right answers. Without, an answer scores 1 if it is the unpruned model's.
        relative: the score divided by the unpruned one on the same questions; None where that is 0.
        questions: how many there are.
        needed: questions without which the limit cannot be shown to hold, even if pruning changes no answer.
    """

    allowed: float
    answered: bool
    relative: Interval | None
    questions: int
    needed: int

    @property
    def holds(self) -> bool:
        """Whether the score itself is within the limit, shown or not."""
        return self.relative is not None and self.relative.mean >= 1 - self.allowed - 1e-9

    @property
    def passed(self) -> bool:
        """Whether the lower end of the interval is within the limit: it is shown that no more is lost."""
        return self.relative is not None and self.relative.low >= 1 - self.allowed


def check_drop(before: Sequence[float] | None, after: Sequence[float], allowed: float) -> Drop:
    """Whether pruning costs no more than is allowed: the one meaning of `max_drop`.

    Args:
        before: scores of the unpruned answers; None where the questions have no right answers.
        after: scores of the pruned ones; without right answers, whether each is the unpruned model's.
        allowed: share of the unpruned score that may be lost, see `check_limit`.
    """
    base = 1.0 if before is None else float(np.mean(before))
    relative = share_of(after) if before is None else compare(before, after)[1]
    needed = samples_for(1 - allowed * base) if base > 0 else 0
    return Drop(allowed, before is not None, relative, len(after), needed)


def check_limit(name: str, value: float | None) -> None:
    """Refuse a limit, such as `max_drop`, that means nothing, before anything is measured.

    Raises:
        SettingsError: it is not between 0 and 1.
    """
    if value is not None and not 0 < value < 1:
        raise SettingsError(
            f"{name} must be a share above 0 and below 1, got {value:g}: no number of questions shows that a share is "
            "exactly 0 or 1",
            options=(name,),
        )
