"""Each pass on a graph of a few nodes; ONNX Runtime computes the same before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
from safetensors.numpy import save_file

from iwp_export.exporter.streaming import Losses, rename_dimension, stream_weights
from iwp_export.exporter.weights import read_header

TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
linear (float[rows, 3] x) => (float[rows, 2] y, float[3, 2] same)
<float[2, 3] weight = {0, 0, 0, 0, 0, 0}, float[2, 3] plain = {0, 0, 0, 0, 0, 0}>
{
  turned = Transpose <perm = [1, 0]> (weight)
  y = MatMul (x, turned)
  same = Transpose <perm = [1, 0]> (plain)
}
"""


def run(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    data = ir.serde.serialize_model(model).SerializeToString()
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, feeds)


def test_weights_are_streamed_and_linear_layers_need_no_transpose(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "weight": rng.standard_normal((2, 3)).astype(np.float16),
        "plain": np.ones((2, 3), np.float32),
    }
    save_file(arrays, tmp_path / "w.safetensors")
    model = ir.serde.deserialize_model(onnx.parser.parse_model(TEXT))
    stream_weights(model, read_header(tmp_path / "w.safetensors"), Losses())
    assert [node.op_type for node in model.graph] == ["MatMul", "Transpose"]  # the second is a graph output
    assert "weight" not in model.graph.initializers
    x = rng.standard_normal((4, 3)).astype(np.float32)
    got, same = run(model, x=x)
    np.testing.assert_allclose(got, x @ arrays["weight"].astype(np.float32).T, rtol=1e-5)
    assert np.array_equal(same, np.ones((3, 2)))


def test_a_matrix_with_other_uses_is_stored_once(tmp_path: Path) -> None:
    """As a tied embedding, which is gathered from and, transposed, the head."""
    arrays = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "plain": np.ones((2, 3), np.float32)}
    save_file(arrays, tmp_path / "w.safetensors")
    text = TEXT.replace("y = ", "row = Gather (weight, which)\n  sum = Add (x, row)\n  y = ").replace(
        "(x, t", "(sum, t"
    )
    text = text.replace("<float[2, 3] weight", "<int64 which = {1}, float[2, 3] weight")
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    stream_weights(model, read_header(tmp_path / "w.safetensors"), Losses())
    assert set(model.graph.initializers) == {"which", "weight", "plain"}
    x = np.ones((4, 3), np.float32)
    np.testing.assert_allclose(run(model, x=x)[0], (x + arrays["weight"][1]) @ arrays["weight"].T)


def test_dimensions_are_renamed_inside_expressions() -> None:
    model = ir.serde.deserialize_model(onnx.parser.parse_model(TEXT))
    for value in (*model.graph.inputs, *model.graph.outputs[:1]):
        value.shape = ir.Shape(["past + u0", 3])
    rename_dimension(model, "u0", "kept")
    shapes = [value.shape for value in (model.graph.inputs[0], model.graph.outputs[0])]
    assert [str(shape[0].value) for shape in shapes if shape is not None] == ["past + kept"] * 2  # type: ignore[union-attr]
