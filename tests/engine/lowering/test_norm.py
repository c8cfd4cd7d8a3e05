"""RMSNormalization as primitives computes what ONNX Runtime's RMSNormalization does."""

from __future__ import annotations

import numpy as np
import pytest

from iwp_export.engine.lowering.operators import ExpandRMSNormalization
from iwp_export.errors import BackendError
from tests.engine.lowering.graphs import normal, one_node, ops, run


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_equals_rms_normalization(dtype: str) -> None:
    inputs = {"x": 3 * normal(1, 5, 16, dtype=dtype), "scale": normal(16, seed=1, dtype=dtype)}
    model = one_node("RMSNormalization", inputs, 3, axis=-1, epsilon=1e-6)
    expected = run(model, inputs)[0]
    assert ExpandRMSNormalization()(model).modified
    assert "RMSNormalization" not in ops(model)
    tolerance = 1e-6 if dtype == "float32" else 4e-3
    np.testing.assert_allclose(run(model, inputs)[0], expected, atol=tolerance, rtol=tolerance)


def test_half_precision_squares_do_not_overflow() -> None:
    inputs = {"x": np.full((1, 2, 8), 1000, np.float16), "scale": np.ones(8, np.float16)}
    model = one_node("RMSNormalization", inputs, 3, axis=-1)
    ExpandRMSNormalization()(model)
    np.testing.assert_allclose(run(model, inputs)[0], 1, atol=1e-3)


def test_several_axes_are_refused() -> None:
    inputs = {"x": normal(2, 3, 4), "scale": normal(3, 4)}
    with pytest.raises(BackendError, match="several axes"):
        ExpandRMSNormalization()(one_node("RMSNormalization", inputs, 3, axis=1))
