"""The promise of the operation count, what is asked, memory, and the op alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from iwp_export.bundle.store import Bundle
from iwp_export.errors import DataError, SettingsError
from iwp_export.latency import memory, selection
from iwp_export.latency.memory import watch_memory
from iwp_export.latency.promise import promised_speedup
from iwp_export.latency.requests import answer
from iwp_export.latency.workload import Ask, choose_asks
from iwp_export.pruning.cost import PrefillCost
from iwp_export.questions import SHIPPED
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.scorer import Reference
from tests.latency.made import pipeline_on
from tests.runtime.toy import ToySession, toy_manifest


def test_the_promise_is_that_of_the_operations(tiny_bundle):
    manifest = Bundle.open(tiny_bundle).manifest
    cost = PrefillCost(8, 128, 256, 128, 64, 48, 64, 9)  # its config.json
    assert promised_speedup(manifest, [(64, 9, 20)]) == pytest.approx(cost.speedup(manifest.pruning.layer, 20))
    few, many = (promised_speedup(manifest, [(64, 9, kept)]) for kept in (40, 4))
    assert 1 < few < promised_speedup(manifest, [(64, 9, 40), (64, 9, 4)]) < many


def test_what_is_asked(tmp_path):
    manifest = toy_manifest()
    tiny = replace(manifest, model=replace(manifest.model, name="tiny-llava"))
    assert len(choose_asks(tiny).requests) == 7 and "samples of tiny-llava" in choose_asks(tiny).source
    synthetic = choose_asks(manifest)
    assert "synthetic image of 640 x 480" in synthetic.source and np.asarray(synthetic.requests[0].images[0]).shape == (
        480,
        640,
        3,
    )
    given = choose_asks(tiny, [Path("a.png")], "what ?")
    assert given.requests == (Ask((Path("a.png"),), "what ?"),)
    assert len(choose_asks(manifest, data=SHIPPED["tiny-llava"]["samples"], limit=3).requests) == 3
    with pytest.raises(DataError, match="not both"):
        choose_asks(manifest, prompt="what ?", data=SHIPPED["tiny-llava"]["samples"])


def test_a_short_file_is_called_what_it_is(monkeypatch, tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text(SHIPPED["tiny-llava"]["samples"].read_text().splitlines()[0] + "\n")
    (tmp_path / "000.png").write_bytes((SHIPPED["tiny-llava"]["samples"].parent / "000.png").read_bytes())
    manifest = toy_manifest()
    monkeypatch.setitem(SHIPPED, manifest.model.name, {"samples": file})
    assert choose_asks(manifest).source == f"the first 1 samples of {manifest.model.name}"


def test_a_prompt_alone_is_asked_of_an_image():
    (ask,) = choose_asks(toy_manifest(), prompt="what ?").requests
    assert ask.prompt == "what ?" and len(ask.images) == 1


def test_memory_by_phase(monkeypatch):
    peaks = iter(range(100, 200))
    monkeypatch.setattr(memory, "peak_bytes", lambda: next(peaks))
    monkeypatch.setattr(memory, "resident_bytes", lambda: 7)
    monkeypatch.setattr(memory, "reset_peak", lambda: True)
    ask = Ask((np.zeros((112, 112, 3), np.uint8),), "what is it ?")
    session = ToySession()
    session.provider = "cuda"
    found = watch_memory(pipeline_on(session), ask, {"pruned": 0.5, "unpruned": 1.0}, 3, lambda: 5)
    assert found.loaded == 7 and found.gpu == {"pruned": 5, "unpruned": 5}
    assert found.peaks == {
        "pruned preprocess": 100, "pruned vision": 101, "pruned prefill": 102, "pruned decode": 104,
        "unpruned preprocess": 105, "unpruned vision": 106, "unpruned prefill": 107, "unpruned decode": 109,
    }  # fmt: skip


def test_a_mark_that_cannot_be_set_back_is_no_peak_of_a_phase(monkeypatch):
    monkeypatch.setattr(memory, "peak_bytes", lambda: 100)
    monkeypatch.setattr(memory, "reset_peak", lambda: False)
    ask = Ask((np.zeros((112, 112, 3), np.uint8),), "what is it ?")
    found = watch_memory(pipeline_on(ToySession()), ask, {"pruned": 0.5, "unpruned": 1.0}, 3, lambda: None)
    assert found.peaks == {}


def test_the_op_alone_runs_in_onnx_runtime(tiny_bundle):
    pipeline = Pipeline.open(tiny_bundle, threads=1)
    ask = choose_asks(pipeline.manifest).requests[0]
    found = selection.time_selection(pipeline, ask, 0.3, (64, 9, 20), runs=5, threads=1)
    assert found.how == selection.IN_A_GRAPH and found.seconds is not None
    assert found.seconds.runs == 5 and found.seconds.p50 > 0


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_op_alone_of_types_that_a_cpu_has(dtype):
    manifest = toy_manifest(dtype)
    selection.op_in_a_graph(manifest, "cpu", (64, 9, 20), 1)()


def test_other_backends_say_that_it_was_not_measured():
    found = selection.time_selection(pipeline_on(ToySession()), Ask((), "x"), 0.3, (64, 9, 20), 3)
    assert found.seconds is None and found.how.startswith("not measured: toy")


def test_without_onnx_it_says_so(tiny_bundle, monkeypatch):
    def missing(*arguments):
        raise ModuleNotFoundError("No module named 'onnx'", name="onnx")

    monkeypatch.setattr(selection, "op_in_a_graph", missing)
    pipeline = Pipeline.open(tiny_bundle, threads=1)
    assert selection.time_selection(pipeline, Ask((), "x"), 0.3, (64, 9, 20), 3).how == selection.NO_ONNX


def test_torch_tells_the_time_of_the_op_in_its_place(tiny_bundle):
    pipeline = Pipeline.open(tiny_bundle, threads=1)
    manifest = pipeline.manifest
    reference = Reference.of(manifest).pruned(pipeline, manifest.pruning)
    ask = choose_asks(manifest).requests[0]
    found = selection.time_selection(reference, ask, 0.3, (64, 9, 20), runs=4)
    assert found.how == selection.IN_PLACE and found.seconds is not None
    prefill = max(answer(reference, ask, 0.3, 1).phases["prefill"] for _ in range(5))
    assert found.seconds.runs == 4 and 0 < found.seconds.p50 < prefill  # which holds it


@pytest.mark.parametrize("limit", [0, -1])
def test_no_question_is_no_bench(limit):
    with pytest.raises(SettingsError, match="limit must be 1 or more"):
        choose_asks(toy_manifest(), data=SHIPPED["tiny-llava"]["samples"], limit=limit)


def test_the_source_counts_what_is_there_and_an_empty_prompt_stays_empty():
    manifest = toy_manifest()
    tiny = replace(manifest, model=replace(manifest.model, name="tiny-llava"))
    asks = choose_asks(tiny, limit=10**6)
    assert f"the first {len(asks.requests)} samples" in asks.source and len(asks.requests) < 1000
    assert choose_asks(manifest, prompt="").requests[0].prompt == ""


def test_a_prompt_alone_is_asked_of_a_model_with_samples_too():
    manifest = toy_manifest()
    tiny = replace(manifest, model=replace(manifest.model, name="tiny-llava"))
    (asked,) = choose_asks(tiny, prompt="what ?").requests
    assert asked.prompt == "what ?"
