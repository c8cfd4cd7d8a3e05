"""Every score and selection builds in TensorRT-RTX as part of a whole decoder, and lowers to the oldest opset."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import onnx_ir as ir
import pytest
import torch

from iwp_export.bundle.store import Bundle
from iwp_export.engine.flavour import RTX, TENSORRT_10_3, Flavour, Target
from iwp_export.engine.kernels import NoKernels
from iwp_export.engine.lowering.lower import lower, write_lowered
from iwp_export.engine.network import EngineBuilder
from iwp_export.engine.profiles import choose_limits, decoder_profiles
from iwp_export.exporter.checkpoint import open_checkpoint
from iwp_export.exporter.streaming import Losses
from iwp_export.exporter.trace import trace_decoder
from iwp_export.pruning.settings import Importance, PruningSettings

BASE = PruningSettings(layer=1)
POOLED: dict[str, dict[str, Any]] = {
    "kernel": {"query_pool": "max"},
    "kernel_value": {"query_pool": "mean", "heads": "raw"},
    "update": {"heads": "raw"},
    "leave_one_out": {"query_pool": "max", "head_pool": "max"},
    "last_attention": {"head_pool": "max"},
    "value_centred": {"head_pool": "max"},
}
"""Each pool somewhere, where it adds operators."""
SETTINGS = [
    *(BASE.with_changes(importance=name, **POOLED.get(name, {})) for name in get_args(Importance)),
    BASE.with_changes(importance="leave_one_out", query_pool="mean", rope_in_importance=True, chunk=1, growth=1),
    BASE.with_changes(select="coverage", similarity="value", rope_in_duplication=False),
]
BUILT_IN_BOTH_FORMS = [s for s in SETTINGS if s.importance == "random" or s.query_pool == "max"]
"""Those with whole numbers, and with most operators."""
QUICK = next(s for s in SETTINGS if s.importance == "leave_one_out" and s.query_pool == "max")


def traced(folder: Path, settings: PruningSettings) -> ir.Model:
    """The decoder's graph of a checkpoint with other settings; its inputs are those of the bundle."""
    checkpoint = open_checkpoint(str(folder))
    return trace_decoder(checkpoint, checkpoint.weights(), settings, torch.float16, Losses())


def build(rtx: Flavour, bundle: Path, model: ir.Model, folder: Path, target: Target) -> Any:
    weights = folder / "decoder.weights"
    if not weights.exists():
        ir.save(model, folder / "decoder.onnx", external_data=weights.name)
    lowered = folder / f"opset_{target.opset}"
    lowered.mkdir()
    graph, plugins = write_lowered(folder / "decoder.onnx", weights, lowered, target)
    assert plugins == 1
    manifest = Bundle.open(bundle).manifest
    profiles = decoder_profiles(manifest, choose_limits(manifest.decoder, manifest.vision))
    return EngineBuilder(rtx, ["89"], NoKernels()).build(graph, plugins, profiles[:1], "language model")


@pytest.mark.parametrize(
    "settings",
    [pytest.param(s, marks=[] if s == QUICK else pytest.mark.slow) for s in SETTINGS],
    ids=[f"{s.importance}-{s.query_pool}-{s.select}" for s in SETTINGS],
)
def test_builds(
    rtx: Flavour, random_llava: Path, random_bundle: Path, tmp_path: Path, settings: PruningSettings
) -> None:
    """The builder wants a plugin layer in the op's place; `lower` holds each node against the oldest parser's table."""
    model = traced(random_llava, settings)
    assert build(rtx, random_bundle, model, tmp_path, RTX).nbytes > 0
    if settings in BUILT_IN_BOTH_FORMS:
        assert build(rtx, random_bundle, model, tmp_path, TENSORRT_10_3).nbytes > 0
    else:
        lower(ir.load(tmp_path / "decoder.onnx"), TENSORRT_10_3)
