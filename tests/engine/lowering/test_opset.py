"""Lowering of the opset refuses what the older standard, or TensorRT's oldest parser, does not know."""

from __future__ import annotations

import numpy as np
import pytest

from iwp_export.engine.lowering.lower import LowerOpset
from iwp_export.errors import BackendError
from tests.engine.lowering.graphs import normal, one_node, run


def test_a_legal_graph_gets_the_older_version() -> None:
    inputs = {"x": normal(2, 3)}
    model = one_node("Softmax", inputs, 2, axis=-1)
    expected = run(model, inputs)[0]
    assert LowerOpset()(model).modified
    assert (model.opset_imports[""], model.ir_version) == (20, 9)
    np.testing.assert_array_equal(run(model, inputs)[0], expected)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "message"),
    [
        ("RMSNormalization", {"x": normal(2, 3), "s": normal(3)}, {}, "the operator is not in it"),
        ("Cast", {"x": normal(2)}, {"to": 1, "round_mode": "up"}, "attribute round_mode is not in it"),
        ("NonZero", {"x": normal(2)}, {}, "parser is not known to take it"),
        ("Clip", {"x": np.arange(3), "low": np.array(1)}, {}, "parser does not take INT64"),
        ("Mod", {"x": normal(2), "divisor": normal(2)}, {"fmod": 1}, "parser does not take FLOAT"),
        ("ReduceSum", {"x": normal(2), "axes": np.array([0])}, {}, "axes are not a constant"),
    ],
)
def test_refusals(op_type: str, inputs: dict[str, np.ndarray], attributes: dict[str, object], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        LowerOpset()(one_node(op_type, inputs, 2, **attributes))
