"""Lowering of a bundle's graph for a target, and writing it beside the bundle's own weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir

from iwp_export.engine.lowering.accumulation import AccumulateInFloat32
from iwp_export.engine.lowering.attention import ExpandAttention
from iwp_export.engine.lowering.clip import ExpandIntegerClip
from iwp_export.engine.lowering.functions import CastFlags, CheckPluginNodes, StripFunctions, plugin_nodes
from iwp_export.engine.lowering.norm import ExpandRMSNormalization
from iwp_export.engine.lowering.opset import LowerOpset
from iwp_export.engine.lowering.rotary import ExpandRotaryEmbedding
from iwp_export.engine.target import Target
from iwp_export.errors import BackendError


def lower(model: ir.Model, target: Target) -> ir.Model:
    """Change a graph, in place, into one that a target's parser takes.

    Args:
        model: a bundle's graph; its weights may be external and are not read.
        target: the TensorRT that will parse it.

    Raises:
        BackendError: the graph has a node that cannot be expressed there.
    """
    native_attention = target.native_attention_types if "Attention" in target.native else frozenset()
    passes: list[ir.passes.InPlacePass] = [
        StripFunctions(),
        CheckPluginNodes(),
        CastFlags(),
        ExpandAttention(native_attention),
    ]
    if "RotaryEmbedding" not in target.native:
        passes.append(ExpandRotaryEmbedding())
    if "RMSNormalization" not in target.native:
        passes.append(ExpandRMSNormalization())
    if target.strict:
        passes.append(ExpandIntegerClip())
    passes.append(AccumulateInFloat32())  # also the products that attention became
    if target.opset < model.opset_imports[""]:
        passes.append(LowerOpset(target.opset, target.strict))
    for each in passes:
        each(model)
    return model


def write_lowered(source: Path, weights: Path, folder: Path, target: Target) -> tuple[Path, int]:
    """Lower a bundle's graph into a folder; the weights file is linked there, not copied.

    TensorRT's parser looks for external weights beside the graph. New constants are small and stay in the graph.

    Args:
        source: the bundle's graph.
        weights: its file of weights.
        folder: an existing folder.
        target: the TensorRT that will parse it.

    Returns:
        The lowered graph's path, and how many plugin layers TensorRT must make of it.

    Raises:
        BackendError: see `lower`.
    """
    model = lower(ir.load(source), target)
    used = {t.location for v in model.graph.initializers.values() if isinstance(t := v.const_value, ir.ExternalTensor)}
    if used - {weights.name}:
        raise BackendError(f"{source} has weights in {sorted(map(str, used - {weights.name}))}, not in {weights.name}")
    link_file(weights, folder / weights.name)
    path = folder / source.name
    ir.save(model, path)
    return path, len(plugin_nodes(model))


def link_file(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`: a hard link, a symbolic link, or a copy where there are no links.

    Hard links first: some readers of ONNX refuse weights whose path leads out of the model's folder.
    """
    source = source.resolve()
    for link in (target.hardlink_to, target.symlink_to):
        try:
            link(source)
            return
        except OSError:
            continue
    shutil.copyfile(source, target)
