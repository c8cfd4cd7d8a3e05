"""A whole bundle's graphs, lowered for the oldest TensorRT, give the same results in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from iwp_export.bundle.store import Bundle
from iwp_export.engine.flavour import FUSED_OPS, RTX, TENSORRT_10_3, Target
from iwp_export.engine.lowering.lower import IS_VISUAL, plugin_nodes, write_lowered
from iwp_export.pruning.onnx_function import select_tokens_function

TOLERANCE = 1e-3
TEXT, VISUAL, PAST = 9, 64, (6, 4)


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def decoder_inputs(bundle: Bundle) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    tokens, info = TEXT + VISUAL, bundle.manifest.decoder
    index = np.full((1, tokens), -1)
    index[0, 3 : 3 + VISUAL] = np.arange(VISUAL)
    inputs: dict[str, np.ndarray[Any, Any]] = {
        "input_ids": rng.integers(5, info.vocab_size, (1, tokens)),
        "image_features": rng.standard_normal((VISUAL, info.hidden_size), np.float32),
        "feature_index": index,
        "query_index": np.arange(3 + VISUAL, tokens),
        "position_ids": np.arange(tokens)[None] + PAST[0],
        "num_kept": np.array([TEXT + bundle.manifest.pruning.num_keep(VISUAL)]),
    }
    for tensor in bundle.manifest.graphs["decoder"].inputs[len(inputs) :]:
        length = PAST["past_pruned" in tensor.shape]
        inputs[tensor.name] = rng.standard_normal((1, info.kv_heads, length, info.head_dim), np.float32)
    return inputs


@pytest.mark.parametrize("target", [RTX, TENSORRT_10_3], ids=lambda target: str(target.opset))
def test_decoder_gives_the_same(tiny_bundle: Path, tmp_path: Path, target: Target) -> None:
    bundle = Bundle.open(tiny_bundle)
    inputs = decoder_inputs(bundle)
    expected = session(bundle.path("decoder.onnx")).run(None, inputs)
    path, plugins = write_lowered(bundle.path("decoder.onnx"), bundle.path("decoder.weights"), tmp_path, target)
    assert plugins == 1
    lowered = ir.load(path)
    assert not lowered.functions
    gone = (FUSED_OPS - target.native) | {"Attention"}  # no kernel in float32
    assert gone.isdisjoint(node.op_type for node in lowered.graph)
    function = select_tokens_function(bundle.manifest.pruning, target.opset)  # ONNX Runtime has no plugin
    node = plugin_nodes(lowered)[0]
    flags = node.inputs[IS_VISUAL].producer()  # type: ignore[union-attr]
    assert flags is not None and flags.op_type == "Cast" and flags.inputs[0].dtype == ir.DataType.BOOL  # type: ignore[union-attr]
    node.replace_input_with(IS_VISUAL, flags.inputs[0])
    lowered.functions[("iwp", "SelectTokens", "")] = ir.serde.deserialize_function(function)
    ir.save(lowered, tmp_path / "runnable.onnx")
    for want, found in zip(expected, session(tmp_path / "runnable.onnx").run(None, inputs), strict=True):
        np.testing.assert_allclose(found, want, atol=TOLERANCE, rtol=TOLERANCE)


def test_vision_gives_the_same(tiny_bundle: Path, tmp_path: Path) -> None:
    pixels = {"pixel_values": np.random.default_rng(0).standard_normal((1, 3, 112, 112), np.float32)}
    expected = session(tiny_bundle / "vision.onnx").run(None, pixels)[0]
    path, plugins = write_lowered(tiny_bundle / "vision.onnx", tiny_bundle / "vision.weights", tmp_path, TENSORRT_10_3)
    assert plugins == 0
    np.testing.assert_allclose(session(path).run(None, pixels)[0], expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_weights_are_linked_not_copied(tiny_bundle: Path, tmp_path: Path) -> None:
    weights = tiny_bundle / "decoder.weights"
    path, _ = write_lowered(tiny_bundle / "decoder.onnx", weights, tmp_path, TENSORRT_10_3)
    assert (tmp_path / "decoder.weights").samefile(weights)
    assert path.stat().st_size < weights.stat().st_size / 10
