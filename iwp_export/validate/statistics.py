"""Intervals of what was measured on samples, and of differences on the same samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 4000
LEVEL = 0.95
NORMAL_95 = 1.959964
"""Standard deviations of the normal distribution on either side that hold 95 %."""


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def standard_error(values: npt.ArrayLike) -> float:
    """Of the mean of values [n]; 0 of a single one."""
    array = np.asarray(values, float)
    return float(array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else 0.0


def bootstrap_mean(values: npt.ArrayLike, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of the mean of values [n]; the same for the same seed.

    Of differences of two things on the same samples it is their paired interval.
    """
    array = np.asarray(values, float)
    draws = np.random.default_rng(seed).integers(len(array), size=(RESAMPLES, len(array)))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(array[draws].mean(1), [tail, 100 - tail])
    return Interval(float(array.mean()), float(low), float(high))


def interval(share: float, samples: int) -> tuple[float, float]:
    """95 % interval of a share by Wilson's score, which has a width at 0 and 1 too; it always holds `share`."""
    spread = NORMAL_95**2 / samples
    middle = (share + spread / 2) / (1 + spread)
    reach = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return min(share, middle - reach), max(share, middle + reach)
