"""The score of a set of questions, its interval, and what it is beside the unpruned model's on the same questions.

A set's figure is made of means over its questions: the mean of the scores or, for F1 of yes, of two means: a, the
share of questions rightly answered yes, and b, the share of wrong answers; F1 = 2a / (2a + b).

A bootstrap of answers of which none or few changed is too narrow: of none it has no width, as if a handful of
questions proved that nothing is lost. So both ends of a comparison are at least as far away as Newcombe's
"square-and-add" interval of the shares that lost and gained (Statistics in Medicine 17, 1998, 2635-2650, method 10
without its correction for correlation) allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from iwp_export.view.figures import Interval, bootstrap_figure, interval

Floats = npt.NDArray[np.float64]


def columns(scores: Sequence[float], yes: Sequence[bool]) -> Floats:
    """What a set's figure is made of, [c, n]: the scores, or for F1 the two columns.

    Args:
        scores: of each question, from 0 to 1.
        yes: for F1, whether each right answer is yes; else empty.
    """
    array = np.asarray(scores, float)
    return np.stack([array * np.asarray(yes, float), 1 - array]) if len(yes) else array[None]


def figure(means: Floats) -> Floats:
    """The set's figure [...] from the means [c, ...] of its columns; F1 of nothing right is 0."""
    if len(means) == 1:
        return means[0]
    twice = 2 * means[0]
    return np.divide(twice, twice + means[1], out=np.zeros_like(twice), where=twice > 0)


def score(scores: Sequence[float], yes: Sequence[bool]) -> Interval:
    """The set's figure: Wilson's interval of a share, else a bootstrap's."""
    if not len(yes) and set(scores) <= {0.0, 1.0}:
        return share(scores)
    found = bootstrap_figure(columns(scores, yes), figure)
    assert found is not None
    return found


def yes_no_figures(scores: Sequence[float], yes: Sequence[bool]) -> dict[str, float]:
    """What POPE reports beside F1; precision and recall of nothing are 0.

    Args:
        scores: of each question, 1 if it was answered rightly, else 0.
        yes: whether the right answer is yes.
    """
    right, is_yes = np.asarray(scores) > 0, np.asarray(yes)
    said = right == is_yes
    hits = float((right & is_yes).sum())
    return {
        "accuracy": float(right.mean()),
        "precision": hits / max(float(said.sum()), 1.0),
        "recall": hits / max(float(is_yes.sum()), 1.0),
        "share of yes": float(said.mean()),
    }


def share(holds: Sequence[float | bool]) -> Interval:
    """A share with Wilson's interval."""
    mean = float(np.mean(holds))
    low, high = interval(mean, len(holds))
    return Interval(mean, low, high)


def compare(before: Sequence[float], after: Sequence[float], yes: Sequence[bool]) -> tuple[Interval, Interval | None]:
    """The change of the set's figure, and the figure divided by the one before.

    Args:
        before, after: scores of the same questions.
        yes: see `columns`.

    Returns:
        After less before, and after divided by before, None where before is 0.
    """
    one, other = columns(before, yes), columns(after, yes)
    both, half = np.concatenate([one, other]), len(one)
    worst, best = (float(figure(_shifted(other.mean(1), reach))) for reach in _reach(before, after))
    base = float(figure(one.mean(1)))
    change = bootstrap_figure(both, lambda means: figure(means[half:]) - figure(means[:half]))
    ratio = bootstrap_figure(both, lambda means: figure(means[half:]) / figure(means[:half])) if base > 0 else None
    assert change is not None
    return _widened(change, worst - base, best - base), ratio and _widened(ratio, worst / base, best / base)


def _reach(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """How far below and above what was found the mean of the scores may be.

    Scores between 0 and 1 vary less than shares of the same mean, so that Wilson's interval is wide enough for them.
    """
    difference, count = np.asarray(after, float) - np.asarray(before, float), len(before)
    lost, gained = float(np.clip(-difference, 0, 1).mean()), float(np.clip(difference, 0, 1).mean())
    (lost_low, lost_high), (gained_low, gained_high) = interval(lost, count), interval(gained, count)
    return -math.hypot(lost_high - lost, gained - gained_low), math.hypot(gained_high - gained, lost - lost_low)


def _shifted(means: Floats, reach: float) -> Floats:
    """Means of which so many more answers are right, or wrong if negative; for F1, answers to what is a yes."""
    if len(means) == 1:
        return np.clip(means + reach, 0, 1)
    return np.array([max(means[0] + reach, 0.0), max(means[1] - reach, 0.0)])


def _widened(found: Interval, low: float, high: float) -> Interval:
    return Interval(found.mean, min(found.low, low), max(found.high, high))
