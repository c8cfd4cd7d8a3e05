"""Estimates of a model so small that they can be worked out by hand, and of LLaVA's shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from iwp_export.device.specs import DEVICES, GB, DeviceSpec
from iwp_export.estimator.estimate import WEIGHTS, Estimate, Shape, predict, sentences, tower_weights, view
from iwp_export.exporter.checkpoint import open_checkpoint
from iwp_export.pruning.cost import PrefillCost
from iwp_export.view.terminal import render
from tests.benchmarks import estimate_check

TOY = Shape(PrefillCost(2, 4, 8, 4, 2, 10, visual=3, text=1), tied=False, tower=70)
DEVICE = DeviceSpec("Toy", 10 * GB, 1e-6, False, "fast", "")
BODY = 2 * (4 * (4 + 2 * 2) + 4 * 4 + 3 * 4 * 8)
HEAD = 4 * 10
LLAVA = Shape(PrefillCost(32, 4096, 11008, 4096, 4096, 32064, 576, 64), tied=False, tower=310_000_000)


def llava(name: str, weights: str = "fp16", **changes: Any) -> Estimate:
    return predict(LLAVA, DEVICES[name], weights, **{"new": 64, "layer": 4, "kept": 173, **changes})


def test_both_sides_by_hand():
    estimate = predict(TOY, DEVICE, "fp16", new=3, layer=1, kept=1)
    before, after = estimate.unpruned, estimate.pruned
    assert estimate.weights_bytes == (BODY + 2 * HEAD + 70) * 2
    # four tokens and three new ones in both layers; in the second, two and three: keys and values of width 2, two bytes
    assert (before.cache_bytes, after.cache_bytes) == (2 * 7 * 8, (7 + 5) * 8)
    assert after.memory_bytes == estimate.weights_bytes + after.cache_bytes
    tokens = 2 * 1.5 + 4 + 2  # in the middle of the answer
    assert after.step_bytes == (BODY + HEAD) * 2 + tokens * 8
    assert after.tokens_per_second == pytest.approx((600 / after.step_bytes, 890 / after.step_bytes))
    below = 4 * 4 * 8 + 4 * 16 + 4 * 96 + 2 * 4 * 4 * 4  # four tokens everywhere
    at = 4 * 4 * 8 + 2 * 16 + 2 * 96 + 2 * 2 * 2 * 4  # four are projected, two go on
    assert after.prefill_operations == below + at + HEAD and before.prefill_operations == 2 * below + HEAD
    assert estimate.operations_ratio == (2 * below + HEAD) / (below + at + HEAD)


@pytest.mark.parametrize(("weights", "bits"), [("fp16", 16), ("int8", 8), ("int4", 4.125)])
def test_weights_leave_head_and_tower_alone(weights: str, bits: float):
    assert TOY.weight_bytes(WEIGHTS[weights]) == round((BODY * bits + (2 * HEAD + 70) * 16) / 8)
    assert replace(TOY, tied=True).weight_bytes(WEIGHTS[weights]) == TOY.weight_bytes(WEIGHTS[weights]) - HEAD * 2


def test_weights_by_shape_are_those_of_the_checkpoint():
    checkpoint = open_checkpoint("tiny-llava")
    shape = Shape(PrefillCost.of(checkpoint.config.text_config, 0, 0), False, tower_weights(checkpoint.config))
    assert shape.weight_bytes(16) == pytest.approx(2 * checkpoint.size(), rel=0.01)


def test_what_does_not_fit_is_told_with_what_would():
    estimate = llava("orin-nano")
    assert not estimate.fits and estimate.smaller == "int4"
    assert sentences(estimate)[0] == (
        "Does not fit: 14.1 GB of weights and 0.2 GB of caches, in 6.0 GB usable of 8 GB; int4 weights would."
    )
    assert llava("orin-nano", "int4").fits


def test_caches_may_be_what_does_not_fit():
    need = llava("rtx-4090").pruned.memory_bytes
    spec = replace(DEVICES["rtx-4090"], memory=need + GB - 1)
    estimate = predict(LLAVA, spec, "fp16", new=64, layer=4, kept=173)
    assert not estimate.fits and sentences(estimate)[0].startswith("Does not fit: 14.1 GB of weights and ")
    spec = replace(spec, memory=spec.memory + 1)
    estimate = predict(LLAVA, spec, "fp16", new=64, layer=4, kept=173)
    assert estimate.fits and sentences(estimate)[0].startswith("Fits only when pruned: ")


def test_what_pruning_brings():
    said = "Pruned, a prefill takes 44.9 % of the operations and a decode step 98.6 % of the bytes."
    assert sentences(llava("agx-orin"))[1] == said
    assert "100.0 % of the operations" in sentences(llava("agx-orin", kept=576))[1]


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_device_gives_text_and_json(name: str, weights: str):
    estimate, spec = llava(name, weights), DEVICES[name]
    shown = render([view(estimate)])
    assert spec.title in shown and spec.source and 0 < spec.usable < spec.memory
    assert ("writes no such weights" in shown) == (weights != "fp16")
    assert estimate.to_dict()["fits"] is estimate.fits


def test_the_shares_are_those_fitted_on_public_figures():
    assert estimate_check.main([]) == 0
    rows = [estimate_check.compare(each) for each in estimate_check.PUBLIC]
    checked = [row for row in rows if row["role"] == "checked"]
    assert len(checked) >= 6 and all(row["in_range"] and abs(row["error"]) < 0.2 for row in checked)
