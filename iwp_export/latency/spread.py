"""What repeated times say: percentiles, intervals that allow for runs that depend on each other, and trends.

A ratio is Hodges and Lehmann's: the middle of the geometric means of any two pairs' ratios. A run that waits for
another program moves it little, and on a quiet machine it is as certain as a mean. Its interval is for a repetition:
another bench of as many pairs gives a ratio in it 98 times of 100, so that three benches lie in each other's intervals
95 times of 100. It is that of Wilcoxon's signed-rank test, which needs no distribution, wider by sqrt(2) since the
repetition has noise of its own, by the correlation of neighbouring pairs, and by `START_SCATTER`. Where the ratio
itself wanders from pair to pair that is not enough, since so few pairs do not show all of it: 95 times of 100 for
neighbours that correlate by 0.5, by simulation of 100 pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iwp_export.view.figures import RESAMPLES, Interval, around

NORMAL_98 = 2.326348
"""Standard deviations of the normal distribution on either side that hold 98 %."""
START_SCATTER = 0.01
"""Standard deviation of a ratio's logarithm from one start of the process to the next, where memory lies otherwise.

Pairs of one process do not show it. Six benches of tiny-llava on a quiet CPU scattered by 0.009 in the prefill, 0.007
of it beyond what their pairs showed (`tests/benchmarks/bench_repeats.py`). 0.01 is taken, so that no interval is
narrower than 3 % on either side.
"""
LEAST_PAIRS = 14
"""Of fewer, no interval of this level ends within what was measured."""
RUNS_FOR_P99 = 100
"""With fewer, the 99th percentile is the slowest run or lies beyond it."""
BLOCKS = 10
"""Consecutive runs that are drawn together in a bootstrap: a tenth of all."""
TREND_Z, TREND_SIZE = 3.0, 0.05
"""A trend is one beyond chance (Mann and Kendall's z) and large enough to matter, as a share of the median."""


@dataclass(frozen=True)
class Spread:
    """Repeated times, in seconds.

    Attributes:
        runs: how many.
        p50, p90, p99: percentiles; p99 is None with fewer runs than `RUNS_FOR_P99`.
        worst: the slowest run.
        mean: with the ends `low` and `high` of its 95 % interval.
    """

    runs: int
    p50: float
    p90: float
    p99: float | None
    worst: float
    mean: float
    low: float
    high: float


def spread_of(values: Sequence[float]) -> Spread:
    """Percentiles and mean of times in the order in which they were measured."""
    array = np.asarray(values, float)
    p50, p90, p99 = (float(value) for value in np.percentile(array, [50, 90, 99]))
    mean = block_bootstrap(array)
    enough = len(array) >= RUNS_FOR_P99
    return Spread(len(array), p50, p90, p99 if enough else None, float(array.max()), mean.mean, mean.low, mean.high)


def block_bootstrap(values: npt.ArrayLike, seed: int = 0) -> Interval:
    """Bootstrap interval of the mean of values [n] whose neighbours depend on each other: whole stretches are drawn.

    The stretches wrap around the end, so that every value is drawn equally often.
    """
    array = np.asarray(values, float)
    length = max(1, len(array) // BLOCKS)
    blocks = math.ceil(len(array) / length)
    sums = np.cumsum([0.0, *array, *array[:length]])
    stretches = (sums[length:] - sums[:-length])[: len(array)] / length
    draws = np.random.default_rng(seed).integers(len(array), size=(RESAMPLES, blocks))
    return around(float(array.mean()), stretches[draws].mean(1))


def ratio_apart(over: npt.ArrayLike, under: npt.ArrayLike, seed: int = 0) -> Interval:
    """Median of `over` [n] through that of `under` [m], which were measured apart; `mean` is that ratio itself.

    Its 95 % interval is of these runs alone: stretches of them are drawn as by `block_bootstrap`. What differs from one
    bench to the next, such as a clock, is not in it; a bench of both in turn has that.
    """
    rng = np.random.default_rng(seed)
    one, other = (np.asarray(values, float) for values in (over, under))
    found = float(np.median(one) / np.median(other))
    return around(found, _drawn_medians(one, rng) / _drawn_medians(other, rng))


def _drawn_medians(array: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Medians [RESAMPLES] of as many values [n] as there are, drawn in stretches."""
    length = max(1, len(array) // BLOCKS)
    starts = rng.integers(len(array), size=(RESAMPLES, math.ceil(len(array) / length)))
    places = (starts[..., None] + np.arange(length)).reshape(RESAMPLES, -1)[:, : len(array)] % len(array)
    return np.median(array[places], 1)


def paired_ratio(over: npt.ArrayLike, under: npt.ArrayLike) -> Interval:
    """How many times as long `over` takes, with the interval for a repetition.

    Args:
        over, under: seconds of the two runs of each pair, in the order of the pairs; `LEAST_PAIRS` at least.
    """
    logs = np.log(np.asarray(over, float) / np.asarray(under, float))
    count = len(logs)
    if count < LEAST_PAIRS:
        raise ValueError(f"an interval needs {LEAST_PAIRS} pairs, got {count}")
    first, second = np.triu_indices(count)
    means = np.sort((logs[first] + logs[second]) / 2)
    variance = count * (count + 1) * (2 * count + 1) / 24  # of the signed-rank statistic
    reach = math.sqrt(2) * NORMAL_98 * math.sqrt(variance * dependence(logs))
    low, high = math.floor(len(means) / 2 - reach), math.ceil(len(means) / 2 + reach)
    ends = means[max(low, 0)], means[min(high, len(means) - 1)]
    middle = float(np.median(means))
    start = math.sqrt(2) * NORMAL_98 * START_SCATTER
    below, above = (math.hypot(end - middle, start) for end in ends)
    return Interval(*(math.exp(value) for value in (middle, middle - below, middle + above)))


def dependence(values: npt.ArrayLike) -> float:
    """By how much the variance of the values' middle grows because neighbours are alike; 1 at least.

    Of ranks, as the statistics that it widens are made of them: the sides of the median are less alike than these.
    Bartlett's weights over sqrt(n) neighbours.
    """
    _, places, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    ranks -= ranks.mean()
    power, lags = float(ranks @ ranks), round(math.sqrt(len(ranks)))
    if power == 0:
        return 1.0
    total = sum((1 - lag / (lags + 1)) * float(ranks[lag:] @ ranks[:-lag]) for lag in range(1, lags + 1))
    return max(1.0, 1 + 2 * total / power)


def trend(values: Sequence[float]) -> float | None:
    """Change from the first to the last run as a share of the median (Theil and Sen); None if it may be chance."""
    array = np.asarray(values, float)
    count = len(array)
    first, second = np.triu_indices(count, 1)
    steps = array[second] - array[first]
    slope = float(np.median(steps / (second - first)))
    rest = dependence(array - slope * np.arange(count))  # the trend itself makes neighbours alike
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18 * rest)
    change = slope * (count - 1) / float(np.median(array))
    return change if abs(np.sign(steps).sum()) > TREND_Z * deviation and abs(change) > TREND_SIZE else None
