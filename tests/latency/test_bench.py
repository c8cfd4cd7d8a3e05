"""The order of runs, their phases by a fake clock, memory, joules, processes, and mistakes."""

from __future__ import annotations

import numpy as np
import pytest

from iwp_export.bundle.store import Bundle
from iwp_export.device import gpu, machine
from iwp_export.device.meters import PowerMeter
from iwp_export.errors import BackendError, RequestError, SettingsError
from iwp_export.latency import bench as module
from iwp_export.latency.bench import (
    FEWEST_PAIRS,
    MOST_PAIRS,
    measure_latency,
    measure_repeatedly,
    number_of_pairs,
    promised_speedup,
)
from iwp_export.latency.requests import choose_questions
from iwp_export.pruning.cost import PrefillCost
from iwp_export.questions import DataSet, Question
from iwp_export.settings import BenchSettings
from tests.latency.made import Clock, ClockedSession, pipeline_on

IMAGE = np.zeros((112, 112, 3), np.uint8)
ASKED = DataSet("one image", (Question((IMAGE,), "what is it ?"),))  # type: ignore[arg-type]


@pytest.fixture
def session(monkeypatch):
    return ClockedSession(Clock().install(monkeypatch))


def bench(session, **settings):
    chosen = BenchSettings(**{"pairs": 14, "warmup": 2, "new_tokens": 5, **settings})
    return measure_latency(pipeline_on(session), ASKED, chosen, meters=[])


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
        assert side.phases["step"].runs == 4 * 14 and len(side.times["prefill"]) == 14 == found.pairs
    assert found.ratios["prefill"].mean == pytest.approx((text + 64) / (text + 16))
    assert found.ratios["decode"].mean == pytest.approx(1)


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
    assert number_of_pairs(10.0, 1, False) == FEWEST_PAIRS and number_of_pairs(10.0, 90, False) == 90
    assert number_of_pairs(1e-4, 1, False) == MOST_PAIRS
    assert number_of_pairs(0.3, 1, False) == 100 == number_of_pairs(10.0, 1, True)


def test_one_token_has_no_decode(session):
    found = bench(session, new_tokens=1)
    assert "decode" not in found.ratios and "step" not in found.pruned.phases


def meter(clock: Clock, readings: list[float], name: str = "VDD_IN", problem: str = "") -> PowerMeter:
    """A counter of a board that draws 50 W by the fake clock; what it reads is noted."""

    def read() -> float:
        if problem:
            raise OSError(problem)
        readings.append(clock.now)
        return 50 * clock.now

    return PowerMeter(name, "fake", "module", read, counts=True)


def test_joules_of_an_answer(session):
    readings: list[float] = []
    meters = [meter(session.clock, readings), meter(session.clock, [], name="GPU", problem="no permission")]
    chosen = BenchSettings(pairs=14, new_tokens=5)
    found = measure_latency(pipeline_on(session), ASKED, chosen, meters=meters)
    (energy,) = found.energy
    assert energy.pruned == pytest.approx(50 * found.pruned.times["end_to_end"][0], rel=1e-4)
    assert energy.unpruned == pytest.approx(50 * found.unpruned.times["end_to_end"][0], rel=1e-4)
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
        ({"pairs": 50, "max_p99_ms": 9.0}, "pairs must be a whole number of 100 or more"),
        ({"new_tokens": 0}, "new_tokens"),
        ({"warmup": 0}, "warmup"),
        ({"repeat": 2}, "repeat must be 1 or 3 to 10"),
        ({"max_ttft_ms": 0.0}, "max_ttft_ms must be a time above 0"),
        ({"max_p99_ms": float("nan"), "pairs": 100}, "max_p99_ms"),
        ({"fail_if_slower": "vision"}, "one of end-to-end, prefill"),
    ],
)
def test_settings_that_make_no_bench(session, settings, named):
    with pytest.raises(SettingsError, match=named):
        bench(session, **settings)


def test_an_answer_longer_than_the_model(session):
    with pytest.raises(RequestError, match="512 positions"):
        bench(session, new_tokens=600)


def test_the_promise_is_that_of_the_operations(tiny_bundle):
    manifest = Bundle.open(tiny_bundle).manifest
    cost = PrefillCost(8, 128, 256, 128, 64, 48, 64, 9)  # its config.json
    assert promised_speedup(manifest, [(64, 73, 20)]) == pytest.approx(cost.speedup(manifest.pruning.layer, 20))
    few, many = (promised_speedup(manifest, [(64, 73, kept)]) for kept in (40, 4))
    assert 1 < few < promised_speedup(manifest, [(64, 73, 40), (64, 73, 4)]) < many


def test_memory_of_each_side(session, monkeypatch):
    peaks = iter((100, 200))
    monkeypatch.setattr(machine, "peak_bytes", lambda: next(peaks))
    monkeypatch.setattr(machine, "reset_peak", lambda: True)
    monkeypatch.setattr(gpu, "gpu_used_bytes", lambda: 5)
    session.provider = "cuda"
    found = bench(session)
    assert (found.pruned.memory, found.unpruned.memory) == (100, 200)
    assert found.pruned.gpu == found.unpruned.gpu == 5
    monkeypatch.setattr(machine, "reset_peak", lambda: False)  # the mark of the whole life is no peak of a request
    session.provider = "cpu"
    found = bench(session)
    assert found.pruned.memory is None and found.pruned.gpu is None


def test_a_fresh_process_measures(tiny_bundle):
    asked = choose_questions(Bundle.open(tiny_bundle).manifest, (), None, None, 1)
    found = measure_repeatedly(tiny_bundle, asked, BenchSettings(pairs=14, warmup=1, new_tokens=1, threads=1))
    assert (found.pairs, found.processes, found.workload.questions) == (14, 1, 1)


FAILS = """
import pathlib, pickle, sys
from iwp_export.errors import RequestError
pathlib.Path(sys.argv[1]).write_bytes(pickle.dumps(RequestError("too long", options=("new_tokens",))))
"""


def test_what_fails_in_a_process_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHILD", FAILS)
    with pytest.raises(RequestError, match="too long") as raised:
        measure_repeatedly(tmp_path, ASKED, BenchSettings(repeat=3))
    assert raised.value.options == ("new_tokens",)
    monkeypatch.setattr(module, "CHILD", "import sys; sys.exit('out of memory')")
    with pytest.raises(BackendError, match="a process of the bench ended with code 1: out of memory"):
        measure_repeatedly(tmp_path, ASKED, BenchSettings(repeat=3))
