"""Clip of whole numbers as Max and Min."""

from __future__ import annotations

import numpy as np
import pytest

from iwp_export.engine.lowering.operators import ExpandIntegerClip
from tests.engine.lowering.graphs import normal, one_node, ops, run


@pytest.mark.parametrize("bounds", [{"low": -1}, {"low": -1, "high": 2}])
def test_equals_clip(bounds: dict[str, int]) -> None:
    inputs = {"x": np.arange(-4, 5), **{name: np.array(value) for name, value in bounds.items()}}
    model = one_node("Clip", inputs, 1)
    expected = run(model, inputs)[0]
    assert ExpandIntegerClip()(model).modified
    assert ops(model) == ["Max", "Min"][: len(bounds)]
    np.testing.assert_array_equal(run(model, inputs)[0], expected)


def test_floats_stay() -> None:
    model = one_node("Clip", {"x": normal(3), "low": np.array(0, np.float32)}, 1)
    assert not ExpandIntegerClip()(model).modified
