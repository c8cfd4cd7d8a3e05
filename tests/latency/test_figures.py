"""Percentiles, ratios with intervals that hold the true ratio, and benches of several processes as one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from iwp_export.latency.figures import joined, paired_ratio, ratio_of_processes, spread_of
from iwp_export.view.figures import Interval
from tests.latency.made import PAIRS, latency


def bench(rng: np.random.Generator, pairs: int, drift: float, hiccups: float) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of a machine whose speed wanders and on which other programs take their turns; the true ratio is 1.5."""
    wander = np.zeros(2 * pairs)
    for i in range(1, 2 * pairs):
        wander[i] = drift * wander[i - 1] + 0.05 * np.sqrt(1 - drift**2) * rng.standard_normal()
    hiccup = (rng.random(2 * pairs) < hiccups) * rng.exponential(1.0, 2 * pairs)
    seconds = np.exp(wander + hiccup + 0.02 * rng.standard_normal(2 * pairs)).reshape(pairs, 2)
    return 1.5 * seconds[:, 0], seconds[:, 1]


@pytest.mark.parametrize(("pairs", "drift", "hiccups"), [(14, 0.0, 0.0), (40, 0.9, 0.05), (40, 0.9, 0.3)])
def test_the_interval_holds_the_true_ratio(pairs, drift, hiccups):
    rng = np.random.default_rng(0)
    found = [paired_ratio(*bench(rng, pairs, drift, hiccups)) for _ in range(60)]
    assert sum(each.low <= 1.5 <= each.high for each in found) >= 54  # 95 of 100, less what 60 draws may deviate by


def test_a_ratio_that_wanders_from_pair_to_pair_has_a_wider_interval():
    rng = np.random.default_rng(0)
    once, wandering = (np.exp(0.05 * np.repeat(rng.standard_normal(200 // n), n)) for n in (1, 10))
    found, wide = (paired_ratio(values, np.ones(200)) for values in (once, wandering))
    assert wide.high / wide.low - 1 > 2 * (found.high / found.low - 1) and found.high / found.low < 1.05


def test_the_order_of_a_pair_does_not_move_the_ratio():
    """Every second pair runs the other way round; the ratios of the two orders are 1.4 and 1.6."""
    found = paired_ratio([1.4, 1.6] * 20, [1.0] * 40)
    assert found.low == pytest.approx(found.high) and found.mean == pytest.approx(math.sqrt(1.4 * 1.6))


def test_processes_that_differ_have_students_interval():
    found = ratio_of_processes([math.exp(value) for value in (0.4, 0.5, 0.6)])
    reach = 4.303 * 0.1 / math.sqrt(3)
    assert found.mean == pytest.approx(math.exp(0.5)) and found.low == pytest.approx(math.exp(0.5 - reach))


def test_benches_of_processes_become_one():
    made = latency()
    ratios = (1.7, 1.9, 1.8)
    each = [
        replace(made, ratios={name: Interval(value, value, value) for name in made.ratios}, load=value, promised=value)
        for value in ratios
    ]
    flawed = replace(made.dropped[0], flaw="another key")
    each[1] = replace(each[1], dropped=(flawed, made.dropped[1]))
    found = joined(each)
    assert found.processes == 3 and found.ratios["prefill"] == ratio_of_processes(ratios)
    assert found.pairs == 3 * PAIRS == found.pruned.phases["prefill"].runs
    assert (found.promised, found.load) == (1.8, 1.7)  # of the process in the middle; before the first
    assert not found.dropped[0].holds


def test_a_p99_of_few_runs_is_not_given():
    few, enough = spread_of(range(1, 100)), spread_of(range(1, 101))
    assert few.p99 is None and few.worst == 99 and few.mean == 50
    assert enough.p99 == pytest.approx(99.01)
