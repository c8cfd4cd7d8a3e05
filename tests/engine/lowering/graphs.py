"""Small graphs for the tests of the lowering passes, and how to run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper

TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}
OPSET = 23


def one_node(op_type: str, inputs: Mapping[str, np.ndarray[Any, Any]], rank: int, **attributes: Any) -> ir.Model:
    """A graph of one node whose inputs have the arrays' shapes; its output `y` is of the first input's type."""
    node = helper.make_node(op_type, list(inputs), ["y"], **attributes)
    arrays = [helper.make_tensor_value_info(n, TYPES[a.dtype.name], a.shape) for n, a in inputs.items()]
    kind = TYPES[next(iter(inputs.values())).dtype.name]
    output = helper.make_tensor_value_info("y", kind, [None] * rank)
    graph = helper.make_graph([node], "graph", arrays, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return ir.serde.deserialize_model(model)


def run(model: ir.Model, inputs: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """The graph's outputs in ONNX Runtime, which also checks it."""
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, dict(inputs))


def ops(model: ir.Model) -> Sequence[str]:
    """The operators of the graph."""
    return [node.op_type for node in model.graph]


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray[Any, Any]:
    """Normal random numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)
