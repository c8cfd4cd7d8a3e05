"""A whole estimate: sums of phases, memory, and the verdict in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iwp_export.device.specs import DEVICES
from iwp_export.estimator.prediction import Estimate, predict, weights_bytes
from iwp_export.estimator.roofline import WEIGHTS, Prompt, Work, decode_work, prefill_work, vision_work
from iwp_export.estimator.shape import LanguageShape, ModelShape, TowerShape
from iwp_export.estimator.words import describe, verdicts
from tests.estimator.shapes import EXACT, LANGUAGE, MODEL, PROMPT, TOWER, device

FP16 = WEIGHTS["fp16"]
LLAVA = ModelShape(
    LanguageShape(32, 4096, 11008, 4096, 4096, 32064), TowerShape(23, 1024, 4096, 577, 576, 588, 1024, 4096)
)


def toy() -> Estimate:
    return predict(MODEL, PROMPT, device(), FP16, efficiency=EXACT)


def llava(name: str, weights: str = "fp16", **changes: int) -> Estimate:
    prompt = replace(Prompt(576, 64, 64, 4, 173), **changes)
    return predict(LLAVA, prompt, DEVICES[name], WEIGHTS[weights])


def seconds(work: Work) -> float:
    return max(2 * work.operations, work.bytes) / 1000


def test_an_answer_is_tower_prompt_and_steps():
    side = toy().pruned
    vision, prefill, step = (
        seconds(vision_work(TOWER, PROMPT, FP16)),
        seconds(prefill_work(LANGUAGE, PROMPT, FP16)),
        seconds(decode_work(LANGUAGE, PROMPT, FP16)),
    )
    assert side.first_token.typical == pytest.approx(vision + prefill)
    assert side.total.typical == pytest.approx(vision + prefill + 2 * step)  # the prefill gives the first of three
    assert side.tokens_per_second.typical == pytest.approx(1 / step)
    assert side.decode_share == pytest.approx(2 * step / side.total.typical)


def test_the_unpruned_side_keeps_every_token():
    estimate = toy()
    assert (estimate.unpruned.visual_tokens, estimate.pruned.visual_tokens) == (3, 1)
    whole = replace(PROMPT, layer=0, kept=3)
    assert estimate.unpruned.prefill.typical == pytest.approx(seconds(prefill_work(LANGUAGE, whole, FP16)))
    assert estimate.unpruned.cache_bytes == 2 * 7 * 8 and estimate.pruned.cache_bytes == (7 + 5) * 8
    assert estimate.speedup("prefill") > 1 and estimate.speedup("vision") == 1


def test_memory_by_hand():
    side = toy().pruned
    weights = (288 + 2 * 40 + TOWER.weights) * 2
    width = 2 * 4 + 4 + 2 * 2 + 2 * 8
    assert weights_bytes(MODEL, FP16) == weights
    assert side.activation_bytes == max(4 * width, 2 * 5 * (5 * 2 + 4)) * 2
    assert side.memory_bytes == weights + side.cache_bytes + side.activation_bytes


def test_what_does_not_fit_is_told_with_what_would():
    estimate = llava("orin-nano")
    assert not estimate.fits and estimate.smaller == "int4"
    assert verdicts(estimate)[0] == "does not fit into 8 GB: 14.1 GB of weights; int4 weights would (4.5 GB)"
    assert llava("orin-nano", "int4").fits


def test_caches_may_be_what_does_not_fit():
    need = llava("rtx-4090").pruned
    spec = replace(DEVICES["rtx-4090"], memory=need.memory_bytes + 10**9 - 1)
    estimate = predict(LLAVA, Prompt(576, 64, 64, 4, 173), spec, FP16)
    assert not estimate.fits and verdicts(estimate)[0].startswith("does not fit: 14.1 GB of weights and ")
    spec = replace(spec, memory=spec.memory + 1)
    estimate = predict(LLAVA, Prompt(576, 64, 64, 4, 173), spec, FP16)
    assert estimate.fits and verdicts(estimate)[0].startswith("fits when pruned alone: ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"new": 64}, "because decode takes 97%: shorter answers or smaller weights would help more"),
        ({"new": 1}, "times as fast, end to end 2.1; the first token 2.1"),
        ({"kept": 576}, "nothing is pruned"),
        ({"layer": 31}, "pruning brings little; prune at an earlier layer, or keep less"),
        ({"new": 1, "tiles": 50}, "which pruning does not touch"),
    ],
)
def test_the_verdict_names_what_the_rest_waits_for(changes, said):
    assert said in verdicts(llava("agx-orin", **changes))[1]


def test_a_tiny_model_is_told_that_kernels_take_longer():
    tiny = predict(MODEL, PROMPT, DEVICES["h200"], FP16)
    assert "kernels" in verdicts(tiny)[2] and len(verdicts(llava("agx-orin"))) == 2


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_device_gives_ordered_ranges_and_text(name, weights):
    estimate = llava(name, weights)
    for side in (estimate.unpruned, estimate.pruned):
        for span in (side.vision, side.prefill, side.step, side.total, side.tokens_per_second):
            assert 0 < span.low <= span.typical <= span.high
    assert DEVICES[name].title in describe(estimate)
    assert ("writes no such weights" in describe(estimate)) == (weights != "fp16")


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_is_described_with_sources(name):
    spec = DEVICES[name]
    assert spec.name == name and spec.sources and spec.modes and 0 < spec.usable < spec.memory
    assert spec.int8 is None or spec.int8 >= spec.fp16
