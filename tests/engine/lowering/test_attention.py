"""Attention as primitives computes what ONNX Runtime's Attention does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from iwp_export.engine.lowering.operators import ExpandAttention
from iwp_export.errors import BackendError
from tests.engine.lowering.graphs import normal, one_node, ops, run

TOLERANCE = {"float32": 1e-5, "float16": 4e-3}


def operands(heads: int, kv_heads: int, mask: str, dtype: str = "float32") -> dict[str, np.ndarray[Any, Any]]:
    new, total, size = 5, 9, 8
    arrays = {
        "q": normal(1, heads, new, size, dtype=dtype),
        "k": normal(1, kv_heads, total, size, seed=1, dtype=dtype),
        "v": normal(1, kv_heads, total, size, seed=2, dtype=dtype),
    }
    causal = np.arange(total)[None] <= np.arange(total - new, total)[:, None]
    if mask == "bool":
        arrays["m"] = causal[None, None]
    if mask == "added":
        arrays["m"] = np.where(causal, 0, -1e4)[None, None].astype(dtype)
    if mask == "of heads":
        arrays["m"] = normal(1, heads, new, total, seed=3, dtype=dtype)
    return arrays


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("mask", ["none", "bool", "added", "of heads"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
def test_equals_attention(heads: int, kv_heads: int, mask: str, dtype: str) -> None:
    inputs = operands(heads, kv_heads, mask, dtype)
    model = one_node("Attention", inputs, 4, scale=0.3)
    expected = run(model, inputs)[0]
    assert ExpandAttention()(model).modified
    assert "Attention" not in ops(model)
    found = run(model, inputs)[0]
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_default_scale_is_the_standards() -> None:
    inputs = operands(2, 2, "none")
    model = one_node("Attention", inputs, 4)
    expected = run(model, inputs)[0]
    ExpandAttention()(model)
    np.testing.assert_allclose(run(model, inputs)[0], expected, atol=1e-5)


def test_the_query_is_scaled_and_not_the_key() -> None:
    model = one_node("Attention", operands(6, 2, "none"), 4)
    ExpandAttention()(model)
    scores = next(node for node in model.graph if node.op_type == "MatMul")
    assert _way_to(scores.inputs[0]) == ["Mul"]
    assert _way_to(scores.inputs[1]) == ["Transpose", "Reshape", "Expand", "Unsqueeze"]


def test_types_with_a_kernel_stay() -> None:
    model = one_node("Attention", operands(2, 2, "bool", "float16"), 4)
    assert not ExpandAttention({"float16"})(model).modified
    assert ops(model) == ["Attention"]


@pytest.mark.parametrize("attributes", [{"is_causal": 1}, {"softcap": 3.0}])
def test_unknown_forms_are_refused(attributes: dict[str, Any]) -> None:
    model = one_node("Attention", operands(2, 2, "none"), 4, **attributes)
    with pytest.raises(BackendError, match=next(iter(attributes))):
        ExpandAttention()(model)


def _way_to(value: Any) -> list[str]:
    """The operators that make a value from an input of the graph, the last one first."""
    node = value.producer()
    return [] if node is None else [node.op_type, *_way_to(node.inputs[0])]
