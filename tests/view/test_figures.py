"""Gates and their table; standard errors and bootstrap intervals against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest

from iwp_export.view.figures import (
    Gate,
    Interval,
    bootstrap_figure,
    bootstrap_mean,
    gates_view,
    interval,
    milliseconds,
    percent,
    samples_for,
    spread,
    standard_error,
    strict_gate,
)
from iwp_export.view.terminal import render


def test_failures_come_first():
    gates = [
        Gate("logits", True, "1e-6", "1e-4"),
        Gate("kept tokens", False, "3 of 9 differ", "0", "sample 4, keep 0.3"),
    ]
    lines = render([gates_view(gates)]).splitlines()
    assert lines[1].split()[:3] == ["kept", "tokens", "FAILED"]
    assert lines[1].endswith("sample 4, keep 0.3")
    assert "passed" in lines[2]


def test_what_to_do_about_a_failure_is_told_once():
    failed = Gate("max-drop", False, "4 %", "1 %", "keep 0.3", "ask 381 questions or more")
    held = Gate("logits", True, "0", "0", remedy="nothing")
    lines = render([gates_view([failed, Gate(**{**vars(failed), "where": "keep 0.5"}), held])]).splitlines()
    assert len(lines) == 6 and lines[-1] == "max-drop: ask 381 questions or more"


def test_a_warning_fails_where_it_is_asked_to():
    assert strict_gate(()).passed
    (gate,) = [strict_gate(["the GPU is throttled"])]
    assert (gate.passed, gate.measured, gate.limit) == (False, "1 warning", "0 warnings")


def test_standard_error():
    assert standard_error([1, 2, 3, 4]) == pytest.approx(np.sqrt(5 / 3 / 4))
    assert standard_error([7.0]) == standard_error([]) == 0.0
    assert standard_error([2, 2, 2]) == 0.0


def test_an_interval_is_that_of_the_normal_distribution_for_many_values():
    values = np.random.default_rng(5).standard_normal(400) + 3
    found = bootstrap_mean(values)
    assert found.mean == pytest.approx(values.mean())
    reach = 1.96 * standard_error(values)
    assert found.low == pytest.approx(values.mean() - reach, abs=0.1 * reach)
    assert found.high == pytest.approx(values.mean() + reach, abs=0.1 * reach)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(1).random(50)
    assert bootstrap_mean(values) == bootstrap_mean(values) != bootstrap_mean(values, seed=1)


def test_intervals_hold_the_mean_and_stay_within_the_values():
    for values in ([3.0], [0, 0, 0], [0, 1], [1, 1, 1, 0]):
        found = bootstrap_mean(values)
        assert min(values) <= found.low <= found.mean <= found.high <= max(values)


def test_it_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    inside = [
        interval.low <= 0.3 <= interval.high for interval in (bootstrap_mean(draw.random(96) < 0.3) for _ in range(200))
    ]
    assert 0.90 <= np.mean(inside) <= 0.99


def test_a_figure_of_means_has_the_interval_of_a_mean():
    values = np.random.default_rng(2).random(60)
    found = bootstrap_figure(values[None], lambda means: means[0])
    assert found is not None
    mean = bootstrap_mean(values)
    assert (found.mean, found.low, found.high) == pytest.approx((mean.mean, mean.low, mean.high))


def test_a_figure_is_drawn_in_pairs():
    values = np.random.default_rng(2).random(60) + 1
    found = bootstrap_figure(np.stack([values, 2 * values]), lambda means: means[1] / means[0])
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2, 2))
    assert bootstrap_figure([[0.0, 0.0], [1.0, 0.0]], lambda means: means[1] / means[0]) is None


def test_so_many_samples_reach_a_share():
    for share in (0.5, 0.9, 0.99):
        count = samples_for(share)
        assert interval(1.0, count)[0] >= share > interval(1.0, count - 1)[0]


def test_shares_and_times_are_written_one_way():
    assert (percent(0.9792), spread(Interval(0.979, 0.951, 0.9931))) == ("97.9 %", "97.9 % (95.1 to 99.3)")
    assert [milliseconds(each) for each in (1.2345, 0.01234, 0.0001)] == ["1,234 ms", "12.3 ms", "0.1 ms"]
