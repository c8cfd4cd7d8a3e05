"""Export: a checkpoint becomes a bundle with a vision graph and a pruned decoder graph."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from iwp_export.bundle.manifest import GraphSpec, Manifest, TensorSpec
from iwp_export.bundle.store import BundleWriter
from iwp_export.errors import BackendError
from iwp_export.exporter.plan import ExportPlan
from iwp_export.exporter.proof import prove_graphs, prove_processor, prove_rope, write_tokenizer
from iwp_export.exporter.streaming import Losses
from iwp_export.progress import progress
from iwp_export.version import __version__

if TYPE_CHECKING:
    import onnx_ir as ir

IN_FLIGHT_BYTES = 64 << 20
"""Weights that may be in memory at once while a graph is written."""

TOOLS = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")


def export_bundle(plan: ExportPlan, output: Path | str, force: bool = False) -> Path:
    """Export a checkpoint to a bundle.

    Args:
        plan: from `plan_export`.
        output: folder of the bundle; it appears whole or not at all.
        force: replace a bundle that is there already.

    Returns:
        The bundle's folder.

    Raises:
        OutputError: the output exists, or cannot be written.
        RecipeError: the weights that were fetched are not of the recipe's model.
        CheckpointError: the weights cannot be fetched or read, or are not those that the configuration asks for; or
            the bundle would not run, see `iwp_export.exporter.proof`.
        BackendError: torch or another package that exporting needs is not installed.
    """
    writer = BundleWriter(output, force)  # refuses an existing output before any work
    _require_tools()
    checkpoint, settings = plan.checkpoint.with_weights(), plan.settings
    source = plan.pruning.confirmed(checkpoint)
    import torch

    from iwp_export.exporter.loading import check_weights
    from iwp_export.exporter.trace import trace_decoder, trace_vision

    torch_dtype = getattr(torch, plan.decoder.dtype)
    weights, losses = checkpoint.weights(), Losses()
    with writer:
        processor = writer.folder / "processor"
        for name in checkpoint.processor_files():
            (processor / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint.folder / name, processor / name)
        prove_rope(checkpoint.config.text_config)  # before the work of minutes
        write_tokenizer(processor)
        picture, _ = prove_processor(processor, plan.decoder, plan.vision, checkpoint.family)
        graphs = {}
        with progress("Tracing the vision tower"):
            vision = trace_vision(checkpoint, weights, torch_dtype, losses)
        graphs["vision"] = _save(vision, writer.folder, "vision", losses)
        with progress("Tracing the language model"):
            decoder = trace_decoder(checkpoint, weights, settings, torch_dtype, losses)
        graphs["decoder"] = _save(decoder, writer.folder, "decoder", losses)
        versions = {name: importlib.metadata.version(name) for name in TOOLS}
        manifest = Manifest(
            replace(plan.model, digest=checkpoint.digest()),
            settings,
            plan.decoder,
            plan.vision,
            graphs,
            pruning_source=source,
            generation=plan.generation,
            tools={"iwp-export": __version__, **versions},
        )
        prove_graphs(manifest, picture)
        writer.commit(manifest)
    left_out = (
        () if plan.checkpoint.is_local else (check_weights(checkpoint.config, checkpoint.folder, checkpoint.weights()),)
    )
    for line in filter(None, (*left_out, *plan.notes)):
        print(f"iwp-export: warning: {line}", file=sys.stderr)
    return Path(output)


def _require_tools() -> None:
    missing = []
    for name in (*TOOLS, "safetensors"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise BackendError(f"exporting needs {', '.join(missing)}; install with: pip install 'iwp-export[export]'")


def _save(model: ir.Model, folder: Path, name: str, losses: Losses) -> GraphSpec:
    """Write a graph and its weights, tensor by tensor; returns its entry in the manifest.

    Raises:
        CheckpointError: a tensor cannot be read, or holds what its element type in the graph does not.
    """
    import onnx_ir as ir

    spec = GraphSpec(
        file=f"{name}.onnx",
        weights=f"{name}.weights",
        opset=model.opset_imports[""],
        inputs=tuple(_tensor_spec(value) for value in model.graph.inputs),
        outputs=tuple(_tensor_spec(value) for value in model.graph.outputs),
    )
    total = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    with progress(f"Writing {spec.weights}", total, unit="bytes") as advance:
        ir.save(
            model,
            folder / spec.file,
            external_data=spec.weights,
            callback=lambda tensor, info: advance(tensor.nbytes),
            max_workers=1,
            max_in_flight_bytes=IN_FLIGHT_BYTES,
        )
    losses.refuse()
    if not (folder / spec.weights).exists():  # a graph whose tensors are all small keeps them inside
        (folder / spec.weights).touch()
    return spec


def _tensor_spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None and value.dtype is not None and value.shape is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(value.name, value.dtype.numpy().name, shape)
