"""The roofline, phase by phase, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iwp_export.device.specs import DEVICES
from iwp_export.estimator.roofline import (
    COMPUTE,
    ELSEWHERE,
    FITTED_ON,
    WEIGHTS,
    Efficiency,
    Range,
    Share,
    Work,
    cache_bytes,
    decode_work,
    efficiency_of,
    prefill_work,
    vision_work,
)
from tests.benchmarks import estimate_check
from tests.benchmarks.estimate_public import PUBLIC
from tests.estimator.shapes import EXACT, LANGUAGE, PROMPT, TOWER, device

FP16, INT8, INT4 = (WEIGHTS[name] for name in ("fp16", "int8", "int4"))
BODY = 2 * (4 * (4 + 2 * 2) + 4 * 4 + 3 * 4 * 8)
HEAD = 4 * 10


def test_weights_by_hand():
    assert (LANGUAGE.body, LANGUAGE.head, LANGUAGE.embedding) == (BODY, HEAD, HEAD) == (288, 40, 40)
    assert replace(LANGUAGE, tied=True).embedding == 0
    assert TOWER.weights == 4 * 2 * 2 + 2 * 2 * 4 + 3 * 2 + 5 * 2 + 2 * 4 + 4 * 4


def test_vision_by_hand():
    layer = 5 * (4 * 2 * 2 + 2 * 2 * 4) + 2 * 5 * 5 * 2
    tile = layer + 4 * 3 * 2 + 4 * (2 * 4 + 4 * 4)
    assert vision_work(TOWER, PROMPT, FP16) == Work(2 * tile, TOWER.weights * 2)
    assert vision_work(None, PROMPT, FP16) == Work(0, 0)


def test_prefill_by_hand():
    below = 4 * 4 * 8 + 4 * 16 + 4 * 96 + 2 * 4 * 4 * 4  # four tokens everywhere
    at = 4 * 4 * 8 + 2 * 16 + 2 * 96 + 2 * 2 * 2 * 4  # four are projected, two go on
    cached = (4 + 2) * 2 * 2 * 2  # tokens of both layers, key and value of width 2, two bytes
    assert prefill_work(LANGUAGE, PROMPT, FP16) == Work(below + at + HEAD, (BODY + HEAD) * 2 + cached)


def test_decode_by_hand():
    tokens = 2 * 1.5 + 4 + 2  # in the middle of three new tokens, in both layers
    work = decode_work(LANGUAGE, PROMPT, FP16)
    assert work == Work(BODY + HEAD + 2 * 4 * tokens, (BODY + HEAD) * 2 + tokens * 8)
    assert cache_bytes(LANGUAGE, PROMPT, FP16, 3) == (7 + 5) * 8


@pytest.mark.parametrize(("weights", "body"), [(FP16, 16), (INT8, 8), (INT4, 4.125)])
def test_weights_leave_head_and_cache_alone(weights, body):
    assert decode_work(LANGUAGE, PROMPT, weights).bytes == BODY * body / 8 + HEAD * 2 + 9 * 8


def values(span: Range) -> tuple[float, ...]:
    return tuple(round(value, 9) for value in (span.low, span.typical, span.high))


def test_a_phase_waits_for_the_slower_of_products_and_bytes():
    work = Work(operations=1500, bytes=2000)
    assert values(work.seconds(device(), EXACT)) == (3, 3, 3) and work.bound(device(), EXACT) == "compute"
    narrow = device(bandwidth=100)
    assert values(work.seconds(narrow, EXACT)) == (20, 20, 20) and work.bound(narrow, EXACT) == "memory"


def test_low_efficiency_is_the_long_end_of_a_range():
    efficiency = Efficiency(Share(0.25, 0.5, 1), Share(0.1, 0.2, 0.5))
    assert values(Work(500, 0).seconds(device(), efficiency)) == (1, 2, 4)
    assert values(Work(0, 500).seconds(device(), efficiency)) == (1, 2.5, 5)
    assert Range(1, 2, 4).inverse() == Range(0.25, 0.5, 1)
    assert (Range(1, 2, 4) + Range(1, 1, 1)).times(2) == Range(4, 6, 10)


@pytest.mark.parametrize("name", DEVICES)
def test_what_is_known_of_a_device_sets_the_range(name):
    low = {weights: efficiency_of(DEVICES[name], WEIGHTS[weights]).compute.low for weights in WEIGHTS}
    known = name in FITTED_ON
    assert low == {"fp16": COMPUTE.low, "int8": low["int4"], "int4": COMPUTE.low if known else ELSEWHERE.low}
    assert efficiency_of(DEVICES[name], INT4).tower.low == COMPUTE.low


def test_the_shares_are_those_fitted_on_public_figures(capsys):
    assert estimate_check.main(["--no-cpu"]) == 0
    rows = [estimate_check.compare(each) for each in PUBLIC]
    checked = [row for row in rows if row["role"] == "checked"]
    assert len(checked) >= 6 and all(row["in_range"] and abs(row["error"]) < 0.2 for row in checked)
    assert abs(estimate_check.compare_pruning()["error"]) < 0.15
