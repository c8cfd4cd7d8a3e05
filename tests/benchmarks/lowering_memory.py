"""What lowering costs an engine of TensorRT-RTX, by the builder's own account: activation memory, weights, size.

python -m tests.benchmarks.lowering_memory -o docs/benchmarks/lowering_memory.json
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import onnx_ir as ir

from tests.benchmarks.rtx_build import make_bundle

COMMAND = "python -m tests.benchmarks.lowering_memory -o docs/benchmarks/lowering_memory.json"
GROUPED = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
}


class LeaveSums(ir.passes.InPlacePass):
    """In place of `AccumulateInFloat32`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, False)


def build(path: Path, target: Any, count: int) -> dict[str, Any]:
    """Build a bundle's decoder with `count` profiles; bytes of the activations are those of each profile."""
    from iwp_export.bundle.store import Bundle
    from iwp_export.engine.flavour import load_flavour
    from iwp_export.engine.kernels import NoKernels
    from iwp_export.engine.lowering.lower import write_lowered
    from iwp_export.engine.network import EngineBuilder
    from iwp_export.engine.profiles import choose_limits, profiles_for

    bundle = Bundle.open(path)
    manifest = bundle.manifest
    profiles = profiles_for(manifest, "decoder", choose_limits(manifest.decoder, manifest.vision), None, count)
    log = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(log):
        spec = manifest.graphs["decoder"]
        graph, plugins = write_lowered(bundle.path(spec.file), bundle.path(spec.weights), Path(folder), target)
        builder = EngineBuilder(load_flavour("rtx"), ["89"], NoKernels())
        engine = builder.build(graph, plugins, profiles, "language model")
    found = {what: re.findall(rf"Total {what} Memory: (\d+)", log.getvalue()) for what in ("Activation", "Weights")}
    return {
        "profiles": count,
        "plan_bytes": engine.nbytes,
        "activation_bytes": list(map(int, found["Activation"])),
        "weight_bytes": int(found["Weights"][0]),
    }


def measure(bundle: Path) -> list[dict[str, Any]]:
    """All forms of one bundle."""
    from iwp_export.engine.flavour import RTX, TENSORRT_10_3
    from iwp_export.engine.lowering import lower

    forms = []
    for attention, target in (("operator", RTX), ("primitives", TENSORRT_10_3)):
        for count in (1, 2):
            forms.append({"attention": attention, "sums": "float32", **build(bundle, target, count)})
            with mock.patch.object(lower, "AccumulateInFloat32", LeaveSums):
                forms.append({"attention": attention, "sums": "TensorRT's choice", **build(bundle, target, count)})
    return forms


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args(arguments)
    os.environ["IWP_EXPORT_DEBUG"] = "1"  # the figures are in the builder's log
    with tempfile.TemporaryDirectory() as folder:
        forms = measure(make_bundle(Path(folder), GROUPED))
    report = {
        "command": COMMAND,
        "date": time.strftime("%Y-%m-%d"),
        "model": "6 layers of 1024, 8 heads of 128 over 2, float16, 32000 words, random weights",
        "shapes": "SM 89, prompts up to 1088 tokens, context 4096",
        "forms": forms,
        "versions": {n: importlib.metadata.version(n) for n in ("tensorrt-rtx", "onnx", "onnx-ir", "torch")},
    }
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
