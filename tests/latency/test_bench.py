"""The order of runs, their phases by a fake clock, and what a bench refuses."""

from __future__ import annotations

import numpy as np
import pytest

from iwp_export.device.meters import PowerMeter
from iwp_export.errors import RequestError, SettingsError
from iwp_export.latency.bench import FEWEST, MOST, BenchSettings, measure_latency
from iwp_export.latency.workload import Ask, Asks
from tests.latency.made import Clock, ClockedSession, pipeline_on

IMAGE = np.zeros((112, 112, 3), np.uint8)
ASKS = Asks((Ask((IMAGE,), "what is it ?"),), "one image")


@pytest.fixture
def session(monkeypatch):
    return ClockedSession(Clock().install(monkeypatch))


def bench(session, **settings):
    chosen = BenchSettings(**{"pairs": 14, "warmup": 2, "new_tokens": 5, **settings})
    return measure_latency(pipeline_on(session), ASKS, chosen, "toy", meters=[])


def test_every_phase_has_its_time(session):
    found = bench(session)
    text = round(found.workload.text_tokens)
    assert (found.workload.visual_tokens, found.workload.kept, found.workload.keep) == (64, 16, 0.25)
    for side, tokens in ((found.pruned, text + 16), (found.unpruned, text + 64)):
        means = {name: spread.mean for name, spread in side.phases.items()}
        assert means["preprocess"] == pytest.approx(0)
        assert means["vision"] == pytest.approx(0.020)
        assert means["prefill"] == pytest.approx(0.001 * tokens)
        assert means["decode"] == pytest.approx(4 * 0.004) and means["step"] == pytest.approx(0.004)
        assert means["first_token"] == pytest.approx(0.020 + 0.001 * tokens)
        assert means["end_to_end"] == pytest.approx(0.036 + 0.001 * tokens)
        assert means["rest"] == pytest.approx(0, abs=1e-9)
        assert side.steps == pytest.approx((0.004,) * 4)
        assert len(side.prefill) == 14 == found.pairs
    assert found.ratios["prefill"].value == pytest.approx((text + 64) / (text + 16))
    assert found.ratios["decode"].value == pytest.approx(1)
    assert found.trends == () and found.loops == ()


def test_features_are_computed_for_every_request(session):
    bench(session)
    prompts = sum(call.input_ids.size > 1 for call in session.calls)
    assert session.encoded == prompts == 2 * (1 + 2 + 14) + 2  # memory, warm-up, pairs; and the proof


def test_sides_take_turns_and_their_order_swaps(session):
    bench(session)
    kept = [call.num_kept for call in session.calls if call.input_ids.size > 1]
    pairs = np.reshape(kept[2:-2], (-1, 2))
    assert {tuple(sorted(pair)) for pair in pairs.tolist()} == {(min(kept), max(kept))}
    assert (np.diff(pairs[:, 0] > pairs[:, 1]) != 0).all()


def test_answers_do_not_end_early(session):
    session.answers = [3] * 10_000  # the end of sequence
    assert bench(session).workload.new_tokens == 5


def test_slow_machines_get_fewer_pairs():
    assert BenchSettings().number_of_pairs(10.0) == FEWEST
    assert BenchSettings().number_of_pairs(1e-4) == MOST
    assert BenchSettings().number_of_pairs(0.3) == 100
    assert BenchSettings(needs_p99=True).number_of_pairs(10.0) == 100
    assert BenchSettings(pairs=15).number_of_pairs(1e-4) == 15


def test_one_token_has_no_decode(session):
    found = bench(session, new_tokens=1)
    assert "decode" not in found.ratios and "step" not in found.pruned.phases and found.pruned.steps == ()


def test_a_drift_is_told(session, monkeypatch):
    whole = session.step

    def slower(*arguments):
        session.clock.now += 1e-4 * len(session.calls)
        return whole(*arguments)

    monkeypatch.setattr(session, "step", slower)
    found = bench(session)
    assert {(trend.side, trend.phase) for trend in found.trends} >= {("pruned", "prefill"), ("unpruned", "end_to_end")}
    assert all(trend.change > 0.05 for trend in found.trends)


def meter(clock: Clock, readings: list[float], name: str = "VDD_IN", problem: str = "") -> PowerMeter:
    """A counter of a board that draws 50 W by the fake clock; what it reads is noted."""

    def read() -> float:
        readings.append(clock.now)
        return 50 * clock.now

    return PowerMeter(name, "fake", "module", read, counts=True, problem=problem)


def test_joules_of_an_answer(session):
    readings: list[float] = []
    meters = [meter(session.clock, readings), meter(session.clock, [], name="GPU", problem="no permission")]
    chosen = BenchSettings(pairs=14, new_tokens=5)
    found = measure_latency(pipeline_on(session), ASKS, chosen, "toy", meters=meters)
    (energy,) = found.energy
    assert energy.pruned == pytest.approx([50 * found.pruned.end_to_end[0]] * 3, rel=1e-4)
    assert energy.unpruned == pytest.approx([50 * found.unpruned.end_to_end[0]] * 3, rel=1e-4)
    assert min(end - start for start, end in zip(readings[::2], readings[1::2], strict=True)) >= 2  # sensors are slow
    assert "joules of GPU not measured: no permission" in found.notes


def test_without_sensors_it_says_so(session):
    assert "joules not measured: no power sensor" in bench(session).notes


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"keep": 0.0}, "keep must be"),
        ({"keep": 1.0}, "prunes nothing"),
        ({"pairs": 13}, "pairs must be a whole number of 14 or more"),
        ({"pairs": 50, "needs_p99": True}, "100 or more for a 99th percentile"),
        ({"new_tokens": 0}, "new_tokens"),
        ({"warmup": 0}, "warmup"),
        ({"hz": 0.0}, "hz"),
        ({"hz": float("nan")}, "hz"),
    ],
)
def test_settings_that_make_no_bench(session, settings, named):
    with pytest.raises(SettingsError, match=named):
        bench(session, **settings)


def test_an_answer_longer_than_the_model(session):
    with pytest.raises(RequestError, match="512 positions"):
        bench(session, new_tokens=600)
