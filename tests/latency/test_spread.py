"""Percentiles, ratios whose interval a repetition keeps to, and trends."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from iwp_export.latency.spread import (
    LEAST_PAIRS,
    START_SCATTER,
    block_bootstrap,
    dependence,
    paired_ratio,
    ratio_apart,
    spread_of,
    trend,
)
from iwp_export.view.figures import bootstrap_mean


def bench(rng: np.random.Generator, pairs: int, drift: float, hiccups: float) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of a machine whose speed wanders and on which other programs take their turns; the true ratio is 1.5."""
    wander = np.zeros(2 * pairs)
    for i in range(1, 2 * pairs):
        wander[i] = drift * wander[i - 1] + 0.05 * np.sqrt(1 - drift**2) * rng.standard_normal()
    hiccup = (rng.random(2 * pairs) < hiccups) * rng.exponential(1.0, 2 * pairs)
    seconds = np.exp(wander + hiccup + 0.02 * rng.standard_normal(2 * pairs)).reshape(pairs, 2)
    return 1.5 * seconds[:, 0], seconds[:, 1]


@pytest.mark.parametrize(("drift", "hiccups"), [(0.0, 0.0), (0.9, 0.05), (0.99, 0.1), (0.9, 0.3)])
def test_three_benches_lie_in_each_others_intervals(drift, hiccups):
    rng = np.random.default_rng(0)
    agree = 0
    for _ in range(200):
        found = [paired_ratio(*bench(rng, 40, drift, hiccups)) for _ in range(3)]
        agree += all(one.low <= other.mean <= one.high for one in found for other in found)
    assert agree >= 0.9 * 200  # 95 of 100, less what 200 draws may deviate by


def test_a_ratio_that_wanders_has_a_wider_interval():
    """Neighbours correlate by 0.7: by the sides of the median alone, 90 of 100 benches held another's ratio."""
    rng = np.random.default_rng(2)

    def wandering() -> np.ndarray:
        logs = np.zeros(150)
        for i in range(1, 150):
            logs[i] = 0.7 * logs[i - 1] + 0.05 * rng.standard_normal()
        return np.exp(logs[50:])

    held = 0
    for _ in range(400):
        one, other = (paired_ratio(wandering(), np.ones(100)) for _ in range(2))
        held += one.low <= other.mean <= one.high
    assert held >= 0.93 * 400


def test_the_interval_holds_the_ratio_and_is_not_endless():
    found = paired_ratio(*bench(np.random.default_rng(1), 100, 0.9, 0.05))
    assert found.low < 1.5 < found.high
    assert found.high - found.low < 0.15


def test_too_few_pairs_have_no_interval():
    values = [1.0] * (LEAST_PAIRS - 1)
    with pytest.raises(ValueError, match="needs 14 pairs"):
        paired_ratio(values, values)


def test_equal_times_still_differ_from_start_to_start():
    found = paired_ratio([2.0] * 20, [1.0] * 20)
    assert found.mean == pytest.approx(2)
    for end in (found.high / found.mean, found.mean / found.low):
        assert math.log(end) == pytest.approx(math.sqrt(2) * 2.326348 * START_SCATTER)


def test_neighbours_that_agree_count_less():
    rng = np.random.default_rng(0)
    assert dependence(rng.standard_normal(400)) < 1.6
    assert dependence(np.repeat(rng.standard_normal(20), 20)) > 5


def test_a_mean_of_dependent_runs_is_less_certain():
    slow = np.repeat(np.random.default_rng(0).standard_normal(10), 10)
    blocks, single = block_bootstrap(slow), bootstrap_mean(slow)
    assert blocks.mean == pytest.approx(single.mean)
    assert blocks.high - blocks.low > 2 * (single.high - single.low)


def test_a_ratio_of_runs_apart_allows_for_runs_that_depend_on_each_other():
    rng = np.random.default_rng(0)
    once, wandering = (1 + 0.1 * np.repeat(rng.standard_normal(200 // n), n) for n in (1, 20))
    found, wide = (ratio_apart(2 * values, np.ones(30)) for values in (once, wandering))
    assert found.low < found.mean < found.high and found.mean == pytest.approx(2, rel=0.02)
    assert wide.high - wide.low > 2 * (found.high - found.low)


def test_thousands_of_steps_take_little_memory():
    tracemalloc.start()
    block_bootstrap(np.ones(20_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


def test_a_p99_of_few_runs_is_not_given():
    few, enough = spread_of(range(1, 100)), spread_of(range(1, 101))
    assert few.p99 is None and few.worst == 99
    assert enough.p99 == pytest.approx(99.01)
    assert few.low < few.mean == 50 < few.high


def test_a_single_run_has_a_spread():
    found = spread_of([0.5])
    assert (found.p50, found.mean, found.low, found.high, found.p99) == (0.5, 0.5, 0.5, 0.5, None)


def test_trends_are_found_and_noise_is_not_one():
    noise = 0.02 * np.random.default_rng(0).standard_normal(60)
    assert trend(list(1 + noise)) is None
    assert trend(list(1 + noise + np.linspace(0.2, 0, 60))) == pytest.approx(-0.2, abs=0.05)
    assert trend(list(1 + noise / 10 + np.linspace(0, 0.03, 60))) is None  # certain, but too small to matter
    assert trend([1.0] * 30) is None
