"""A bfloat16 bundle holds the right weights and the right graph, though ONNX Runtime's CPU cannot run it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from onnx import TensorProto

import iwp_export
from iwp_export.bundle.store import Bundle, BundleWriter
from iwp_export.errors import BackendError
from iwp_export.exporter.checkpoint import open_checkpoint
from tests.runtime.toy import toy_picture


def test_the_graph_with_float32_in_place_of_bfloat16_gives_transformers_logits(
    bfloat16_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match="no bfloat16 kernels"):
        iwp_export.load(str(bfloat16_bundle))
    # A copy: onnx refuses weights with a second hard link, which a build of an engine makes meanwhile.
    copy = Path(shutil.copytree(bfloat16_bundle, tmp_path / "copy.bundle"))
    for graph in ("vision", "decoder"):
        onnx.checker.check_model(str(copy / f"{graph}.onnx"), full_check=True)
    pipeline = iwp_export.load(str(as_float32(copy, tmp_path / "float32.bundle")))

    pixels = np.random.default_rng(0).standard_normal((1, 3, 112, 112)).astype(np.float32)
    pixels = torch.from_numpy(pixels).bfloat16().float().numpy()  # the graph casts them
    ids = np.array([2, 5, *[4] * 64, 9, 7, 12])
    options: dict[str, Any] = {"keep": 1.0, "max_new_tokens": 1, "stop_at_eos": False, "return_logits": True}
    ours = np.array(pipeline.generate_ids(ids, [toy_picture(pixels[0])], **options).logits)[0]
    model = open_checkpoint(str(bfloat16_bundle.with_suffix(".checkpoint"))).load_model("bfloat16").float()
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(ids)[None], pixel_values=torch.from_numpy(pixels)).logits[0, -1]
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-4)


def as_float32(source: Path, target: Path) -> Path:
    """A bundle whose graphs compute in float32 what they compute in bfloat16 in `source`, with the same weights."""
    bundle = Bundle.open(source)
    manifest = bundle.manifest
    with BundleWriter(target) as writer:
        for entry in manifest.graphs.values():
            model = onnx.load(source / entry.file)
            widen(model)
            onnx.save(model, writer.folder / entry.file, save_as_external_data=True, location=entry.weights)
            (writer.folder / entry.weights).touch()
        processor = source / manifest.processor
        (writer.folder / manifest.processor).mkdir()
        for file in processor.iterdir():
            (writer.folder / manifest.processor / file.name).write_bytes(file.read_bytes())
        writer.commit(replace(manifest, decoder=replace(manifest.decoder, dtype="float32")))
    return target


def widen(model: onnx.ModelProto) -> None:
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:
        widen_tensor(tensor)
    widen_nodes(graph.node)
    for function in model.functions:
        widen_nodes(function.node)


def widen_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type in ("Cast", "RMSNormalization") and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t"):
                widen_tensor(attribute.t)


def widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.BFLOAT16:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
