"""RotaryEmbedding as primitives computes what ONNX Runtime's RotaryEmbedding does."""

from __future__ import annotations

import numpy as np
import pytest

from iwp_export.engine.lowering.operators import ExpandRotaryEmbedding
from iwp_export.errors import BackendError
from tests.engine.lowering.graphs import normal, one_node, ops, run


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_equals_rotary_embedding(dtype: str) -> None:
    inputs = {
        "x": normal(1, 3, 5, 8, dtype=dtype),
        "cos": normal(1, 5, 4, seed=1, dtype=dtype),
        "sin": normal(1, 5, 4, seed=2, dtype=dtype),
    }
    model = one_node("RotaryEmbedding", inputs, 4)
    expected = run(model, inputs)[0]
    assert ExpandRotaryEmbedding()(model).modified
    assert "RotaryEmbedding" not in ops(model)
    tolerance = 1e-6 if dtype == "float32" else 4e-3
    np.testing.assert_allclose(run(model, inputs)[0], expected, atol=tolerance, rtol=tolerance)


def test_interleaved_is_refused() -> None:
    inputs = {"x": normal(1, 3, 5, 8), "cos": normal(1, 5, 4), "sin": normal(1, 5, 4)}
    with pytest.raises(BackendError, match="interleaved"):
        ExpandRotaryEmbedding()(one_node("RotaryEmbedding", inputs, 4, interleaved=1))
