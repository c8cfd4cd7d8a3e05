"""Intervals of what was measured on samples, and of differences on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 4000
LEVEL = 0.95
DRAWN_AT_ONCE = 2**21
"""Samples drawn at once by a bootstrap, which bounds its memory."""
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
    return around(float(array.mean()), array[draws].mean(1))


def bootstrap_figure(
    columns: npt.ArrayLike, figure: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]], seed: int = 0
) -> Interval | None:
    """Percentile bootstrap interval of a figure that is made of means over samples.

    Args:
        columns: [c, n], c values of each of n samples, which are drawn together: paired.
        figure: the figure [draws] from the means [c, draws].
        seed: the same seed gives the same interval.

    Returns:
        The figure and its interval; None if it is not finite. Draws of which it is not finite are left out.
    """
    array = np.asarray(columns, float)
    rng, count = np.random.default_rng(seed), array.shape[1]
    step = max(1, DRAWN_AT_ONCE // count)
    found = []
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = float(figure(array.mean(1, keepdims=True))[0])
        for start in range(0, RESAMPLES, step):
            draws = rng.integers(count, size=(min(step, RESAMPLES - start), count))
            found.append(figure(np.stack([column[draws].mean(1) for column in array])))
    values = np.concatenate(found)
    values = values[np.isfinite(values)]
    if not math.isfinite(whole) or not values.size:
        return None
    return around(whole, values)


def around(found: float, draws: npt.NDArray[np.float64]) -> Interval:
    """A figure and the percentile interval of its draws."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(found, float(low), float(high))


def interval(share: float, samples: int) -> tuple[float, float]:
    """95 % interval of a share by Wilson's score, which has a width at 0 and 1 too; it always holds `share`."""
    spread = NORMAL_95**2 / samples
    middle = (share + spread / 2) / (1 + spread)
    reach = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return min(share, middle - reach), max(share, middle + reach)


def samples_for(share: float) -> int:
    """Samples of which all must hold for the lower end of `interval` to reach a share below 1."""
    return math.ceil(NORMAL_95**2 * share / (1 - share) - 1e-9)
