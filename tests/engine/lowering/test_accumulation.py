"""Products of float16 are summed in float32, on hardware that would sum them in float16."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from iwp_export.engine.flavour import RTX, TENSORRT_10_3, TENSORRT_10_14, TENSORRT_10_15, Target
from iwp_export.engine.lowering.lower import lower
from iwp_export.engine.lowering.operators import AccumulateInFloat32
from tests.engine.lowering.graphs import normal, one_node, ops, run

TARGETS = [RTX, TENSORRT_10_15, TENSORRT_10_14, TENSORRT_10_3]
TERMS = 11008
"""What a down projection of a 7B model sums."""
ROUNDING = 2**-10
"""Of one number of float16."""


class MatMul(OpRun):
    """A product whose sums have the type of its operands."""

    op_domain = ""

    def _run(self, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any]]:
        total = a[..., :1] * b[..., :1, :]
        for k in range(1, a.shape[-1]):
            total = total + a[..., k : k + 1] * b[..., k : k + 1, :]
        return (total,)


def emulated(model: ir.Model, inputs: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """The graph's output where a product is summed in the type of its operands."""
    return ReferenceEvaluator(ir.serde.serialize_model(model), new_ops=[MatMul]).run(None, inputs)[0]


@pytest.mark.parametrize("target", TARGETS, ids=["rtx", "10.15", "10.14", "10.3"])
def test_a_long_sum_is_right(target: Target) -> None:
    inputs = {"x": np.abs(normal(3, TERMS, dtype="float16")), "w": np.abs(normal(TERMS, 2, seed=1, dtype="float16"))}
    expected = inputs["x"].astype(np.float32) @ inputs["w"].astype(np.float32)
    model = one_node("MatMul", inputs, 2)
    assert np.abs(emulated(model, inputs) / expected - 1).max() > 0.1
    lower(model, target)
    np.testing.assert_allclose(emulated(model, inputs), expected, rtol=ROUNDING)
    np.testing.assert_allclose(run(model, inputs)[0], expected, rtol=ROUNDING)


def test_attentions_own_products_are_too() -> None:
    inputs = {
        "q": normal(1, 2, 1, 8, dtype="float16"),
        "k": normal(1, 1, TERMS, 8, seed=1, dtype="float16"),
        "v": np.ones((1, 1, TERMS, 8), np.float16),
    }
    model = one_node("Attention", inputs, 4)
    lower(model, TENSORRT_10_3)
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert len(products) == 2 and all(
        v is not None and v.dtype == ir.DataType.FLOAT for n in products for v in n.inputs
    )
    np.testing.assert_allclose(run(model, inputs)[0], 1, rtol=4 * ROUNDING)


def test_weights_stay_float16_in_the_graph() -> None:
    inputs = {"x": normal(3, 8, dtype="float16"), "w": normal(8, 2, seed=1, dtype="float16")}
    model = one_node("MatMul", inputs, 2)
    weight = model.graph.inputs.pop()
    weight.const_value = ir.tensor(inputs.pop("w"), name="w")
    model.graph.register_initializer(weight)
    expected = run(model, inputs)[0]
    assert AccumulateInFloat32()(model).modified
    assert [(v.name, v.dtype) for v in model.graph.initializers.values()] == [("w", ir.DataType.FLOAT16)]
    assert ops(model) == ["Cast", "Cast", "MatMul", "Cast"]
    found = run(model, inputs)[0]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=4 * ROUNDING)


def test_gemm_keeps_its_attributes() -> None:
    inputs = {name: normal(4, 4, seed=i, dtype="float16") for i, name in enumerate("abc")}
    model = one_node("Gemm", inputs, 2, transB=1, alpha=0.5, beta=2.0)
    AccumulateInFloat32()(model)
    assert ops(model) == ["Cast", "Cast", "Cast", "Gemm", "Cast"]
    a, b, c = (array.astype(np.float32) for array in inputs.values())
    np.testing.assert_allclose(run(model, inputs)[0], 0.5 * a @ b.T + 2 * c, atol=4e-3)


def test_other_types_stay() -> None:
    model = one_node("MatMul", {"x": normal(3, 4), "w": normal(4, 2)}, 2)
    assert not AccumulateInFloat32()(model).modified
    assert ops(model) == ["MatMul"]
