"""The way from a checkpoint to a bundle, on tiny random models of every kind of decoder."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import iwp_export
from iwp_export import api
from iwp_export.backends.torch.session import TorchSession
from iwp_export.bundle.store import Bundle
from iwp_export.errors import BundleError, CheckpointError, OutputError, SettingsError
from iwp_export.exporter import trace
from iwp_export.exporter.checkpoint import open_checkpoint
from iwp_export.exporter.plan import plan_export
from iwp_export.pruning.settings import CONTROLS, PruningSettings
from iwp_export.runtime.pipeline import Pipeline
from tests.exporter.tiny import DECODERS, write_llava
from tests.runtime.toy import toy_picture

LAYER_1 = PruningSettings(layer=1, keep=0.3)
TOLERANCE = 2e-4
"""Of float32 logits of random models, which reach some tens."""


@pytest.mark.parametrize(
    "decoder", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in DECODERS if name != "llama")]
)
def test_bundle_equals_transformers_and_the_reference(
    request: pytest.FixtureRequest, tmp_path: Path, decoder: str
) -> None:
    """Eight greedy tokens with nothing pruned, and kept tokens and logits at 0.3, for two images and sharded files.

    `tests/models/test_llava_next.py` has a Mistral, and `test_bfloat16.py` a Qwen2, in `make test` too.
    """
    if decoder == "llama":
        folder, bundle = (request.getfixturevalue(name) for name in ("random_llava", "random_bundle"))
    else:
        folder, bundle = tmp_path / "model", tmp_path / "out.bundle"
        write_llava(folder, decoder, shard_size="100KB")
        api.export(str(folder), bundle, LAYER_1)
    checkpoint = open_checkpoint(str(folder))
    model = checkpoint.load_model()
    model.generation_config.eos_token_id = None
    pipeline = iwp_export.load(str(bundle))
    assert pipeline.manifest.model.digest == checkpoint.digest()
    rng = np.random.default_rng(1)
    pixels = rng.standard_normal((2, 3, 112, 112)).astype(np.float32)
    pictures = [toy_picture(image) for image in pixels]
    ids = np.concatenate([[2, 5], [4] * 64, [9, 7], [4] * 64, rng.integers(5, 48, 6)])

    ours = pipeline.generate_ids(ids, pictures, keep=1.0, max_new_tokens=8, stop_at_eos=False, return_logits=True)
    inputs = {"input_ids": torch.from_numpy(ids)[None], "pixel_values": torch.from_numpy(pixels)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    theirs = model.generate(
        **inputs, max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    assert ours.token_ids == theirs.sequences[0, len(ids) :].tolist()
    np.testing.assert_allclose(np.array(ours.logits), torch.stack(theirs.logits)[:, 0].numpy(), atol=TOLERANCE)

    session = TorchSession(model, checkpoint.family, LAYER_1)
    reference = Pipeline(pipeline.manifest, pipeline.processor, session)
    for keep in (None, 0.05):
        options: dict[str, Any] = {"keep": keep, "max_new_tokens": 4, "stop_at_eos": False, "return_logits": True}
        a, b = pipeline.generate_ids(ids, pictures, **options), reference.generate_ids(ids, pictures, **options)
        assert a.kept == b.kept
        assert a.visual_tokens_kept == LAYER_1.num_keep(128, keep)
        assert a.token_ids == b.token_ids
        assert a.cache_bytes == b.cache_bytes < a.cache_bytes_unpruned
        np.testing.assert_allclose(np.array(a.logits), np.array(b.logits), atol=TOLERANCE)


def slow(settings: PruningSettings) -> Any:
    return pytest.param(settings, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "settings",
    [
        PruningSettings(
            layer=2,
            keep=0.2,
            rope_in_importance=True,
            rope_in_duplication=False,
            penalty=1.5,
            query="last",
            heads="raw",
        ),
        slow(PruningSettings(layer=1, keep=0.2, importance="value", similarity="key", duplication_norm="minmax")),
        slow(PruningSettings(1, 0.2, importance="leave_one_out", query_pool="max", head_pool="max", growth=1)),
        slow(PruningSettings(layer=1, keep=0.2, select="coverage")),
        *(slow(PruningSettings(layer=1, keep=0.2).with_changes(importance=control)) for control in CONTROLS),
    ],
    ids=["rope", "no query", "leave one out", "coverage", *CONTROLS],
)
def test_settings_reach_the_graph(
    random_llava: Path, random_bundle: Path, tmp_path: Path, settings: PruningSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variants are wired as the settings say: the reference with the same settings chooses the same tokens."""
    checkpoint = open_checkpoint(str(random_llava))
    monkeypatch.setattr(trace, "trace_vision", lambda *arguments: ir.load(random_bundle / "vision.onnx"))
    pipeline = iwp_export.load(str(api.export(checkpoint.source, tmp_path / "out.bundle", settings)))
    session = TorchSession(checkpoint.load_model(), checkpoint.family, settings)
    reference = Pipeline(pipeline.manifest, pipeline.processor, session)
    pictures = [toy_picture(np.random.default_rng(3).standard_normal((3, 112, 112)).astype(np.float32))]
    ids = np.array([2, 5, *[4] * 64, 9, 7, 12])
    assert pipeline.generate_ids(ids, pictures).kept == reference.generate_ids(ids, pictures).kept


def test_graphs_pass_the_checker_and_name_their_inputs(tiny_bundle: Path, tmp_path: Path) -> None:
    """On a copy: onnx's checker refuses weights with a second hard link, which an engine being built makes."""
    tiny_bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "copy.bundle"))
    manifest = Bundle.open(tiny_bundle).manifest
    for name, graph in manifest.graphs.items():
        path = tiny_bundle / graph.file
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path, load_external_data=False)
        assert [value.name for value in model.graph.input] == [spec.name for spec in graph.inputs], name
    decoder = onnx.load(tiny_bundle / "decoder.onnx", load_external_data=False)
    pruning = [node for node in decoder.graph.node if node.op_type == "SelectTokens"]
    assert len(pruning) == 1
    assert [function.name for function in decoder.functions] == ["SelectTokens"]
    shapes = {spec.name: spec.shape for spec in manifest.graphs["decoder"].outputs}
    assert shapes["kept_index"] == (1, "kept")
    lengths = [set(str(shapes[f"present.{layer}.key"][2]).split(" + ")) for layer in range(8)]
    assert lengths == [{"past_full", "tokens"}] * 4 + [{"past_pruned", "kept"}] * 4


def test_half_precision_bundle_answers_on_the_cpu(half_bundle: Path) -> None:
    pipeline = iwp_export.load(str(half_bundle))
    result = pipeline(np.zeros((50, 80, 3), np.uint8), "what is the red digit ?", keep=0.3, max_new_tokens=3)
    assert len(result.token_ids) >= 1
    assert result.visual_tokens_kept == 20


def test_plan_says_what_an_export_would_make() -> None:
    plan = plan_export("tiny-llava", PruningSettings(keep=0.3))
    assert (plan.num_visual, plan.num_visual_kept) == (64, 20)
    assert plan.decoder.dtype == "float16"
    head = 2 * 2 * 32 * 2  # key and value, 2 heads of 32, 2 bytes
    assert plan.cache_bytes(10, pruned=False) == 8 * 74 * head
    assert plan.cache_bytes(10) == (4 * 74 + 4 * 30) * head


def test_an_existing_output_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out.bundle").mkdir()
    (tmp_path / "out.bundle" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError):
        api.export("no-such-model", tmp_path / "out.bundle", force=True)
    assert (tmp_path / "out.bundle" / "mine.txt").read_text() == "mine"


def test_too_few_layers(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be pruned at layer 8; choose layer 0 to 7"):
        api.export("tiny-llava", tmp_path / "out.bundle", PruningSettings(layer=8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"model_type": "gemma2", "head_dim": 16}, "gemma2"),
        ({"model_type": "mistral", "sliding_window": 32}, "sliding-window"),
        (
            {
                "model_type": "llama",
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
            },
            "dynamic",
        ),
    ],
)
def test_decoders_that_are_not_supported(tmp_path: Path, text: dict, message: str) -> None:
    write_llava(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"].update(text)
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        plan_export(str(tmp_path / "model"), LAYER_1)


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_weights_that_do_not_fit_the_configuration(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    write_llava(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    name = next(key for key in weights if key.endswith("layers.2.mlp.up_proj.weight"))
    weight = weights.pop(name)
    if damage == "shape":
        weights[name] = weight[:-1].clone()
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.up_proj\.weight"):
        api.export(str(tmp_path / "model"), tmp_path / "out.bundle", LAYER_1)
    assert not (tmp_path / "out.bundle").exists()


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_that_opens(tmp_path: Path) -> None:
    """SIGKILL at two moments; `tests/benchmarks/kill_export.py` does it at 20."""
    code = f"import iwp_export; iwp_export.export('tiny-llava', {str(tmp_path / 'out')!r})"
    for delay in (3.0, random.Random(0).uniform(4, 9)):
        process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        finished = process.wait() == 0
        if finished:  # a machine fast enough to be done by then has a whole bundle
            Bundle.open(tmp_path / "out", verify="full")
        else:
            for folder in (tmp_path / "out", *tmp_path.iterdir()):
                with pytest.raises(BundleError):
                    Bundle.open(folder)
