"""What lowering costs an engine, by TensorRT-RTX's own account: activation memory, weights, size."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import pytest

from iwp_export.bundle.store import Bundle
from iwp_export.engine.flavour import RTX, TENSORRT_10_3, Flavour, Target
from iwp_export.engine.kernels import NoKernels
from iwp_export.engine.lowering import lower
from iwp_export.engine.network import EngineBuilder
from iwp_export.engine.profiles import choose_limits, profiles_for

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Sizes:
    """Bytes of a decoder's engine."""

    engine: int
    activations: int
    weights: int


@pytest.fixture
def build(rtx: Flavour, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Builds a bundle's decoder, with one profile and the default limits, as lowered for a target."""
    monkeypatch.setenv("IWP_EXPORT_DEBUG", "1")  # the figures are in the log

    def build(path: Path, target: Target) -> Sizes:
        bundle = Bundle.open(path)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        graph, plugins = lower.write_lowered(
            bundle.path("decoder.onnx"), bundle.path("decoder.weights"), folder, target
        )
        limits = choose_limits(bundle.manifest.decoder, bundle.manifest.vision)
        profiles = profiles_for(bundle.manifest, "decoder", limits, None, 1)
        engine = EngineBuilder(rtx, ["89"], NoKernels()).build(graph, plugins, profiles, "language model")
        log = capsys.readouterr().err
        activations, weights = (re.findall(rf"Total {what} Memory: (\d+)", log) for what in ("Activation", "Weights"))
        assert len(activations) == len(weights) == 1, log
        return Sizes(engine.nbytes, int(activations[0]), int(weights[0]))

    return build


def test_grouped_attention_as_primitives_takes_the_operators_memory(build, grouped_heads_bundle: Path) -> None:
    native, primitive = (build(grouped_heads_bundle, target) for target in (RTX, TENSORRT_10_3))
    assert primitive.activations <= 1.1 * native.activations


@pytest.mark.parametrize("target", [RTX, TENSORRT_10_3], ids=lambda target: str(target.opset))
def test_sums_in_float32_cost_no_memory(
    build, grouped_heads_bundle: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nothing(ir.passes.InPlacePass):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            return ir.passes.PassResult(model, False)

    wide = build(grouped_heads_bundle, target)
    monkeypatch.setattr(lower, "AccumulateInFloat32", Nothing)
    plain = build(grouped_heads_bundle, target)
    assert wide.activations <= 1.01 * plain.activations
    assert wide.weights <= 1.01 * plain.weights  # they would be twice as much in float32
    assert wide.engine <= 1.01 * plain.engine
