"""What the lowering passes share: nodes and constants put before the node that they replace."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from iwp_export.errors import BackendError

STANDARD_DOMAINS = ("", "ai.onnx")
HALF_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class Rewriter:
    """Builds the replacement of one node in front of it.

    Args:
        graph: the graph, which gets the constants as initializers.
        node: the node to replace; it has one used output.
    """

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._graph = graph
        self._node = node

    def op(self, op_type: str, *inputs: ir.Value, dtype: ir.DataType | None = None, **attributes: Any) -> ir.Value:
        """Add a node with one output, of the first input's element type unless `dtype` says otherwise."""
        return self.ops(op_type, 1, *inputs, dtype=dtype, **attributes)[0]

    def ops(
        self, op_type: str, outputs: int, *inputs: ir.Value, dtype: ir.DataType | None = None, **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """Add a node with several outputs."""
        made = ir.node(op_type, inputs, attributes or None, num_outputs=outputs)
        for index, value in enumerate(made.outputs):
            value.name = f"{self._node.outputs[0].name}.{op_type}.{_serial(self._graph)}.{index}"
            value.dtype = dtype or inputs[0].dtype
        self._graph.insert_before(self._node, made)
        return tuple(made.outputs)

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Add a conversion to another element type."""
        return self.op("Cast", value, dtype=dtype, to=dtype)

    def ints(self, *values: int) -> ir.Value:
        """A constant int64 [n]; equal ones are one initializer."""
        return self._constant(np.array(values, np.int64), f"ints.{'.'.join(map(str, values))}")

    def scalar(self, value: float, dtype: ir.DataType | None) -> ir.Value:
        """A constant of shape [] in an element type; equal ones are one initializer."""
        if dtype is None:
            raise BackendError(f"node {self._node.name} cannot be lowered: its element type is unknown")
        return self._constant(np.array(value, np.float64).astype(dtype.numpy()), f"scalar.{dtype.name}.{value!r}")

    def replace(self, value: ir.Value) -> None:
        """Put `value` in the place of the node's first output and remove the node."""
        old = self._node.outputs[0]
        value.name, old.name = old.name, f"{old.name}.replaced"
        value.shape, value.type = old.shape, old.type
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        self._graph.remove(self._node, safe=True)

    def _constant(self, array: np.ndarray[Any, Any], name: str) -> ir.Value:
        name = f"lowered.{name}"
        if name not in self._graph.initializers:
            tensor = ir.tensor(array, name=name)
            value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
            value.const_value = tensor
            self._graph.register_initializer(value)
        return self._graph.initializers[name]


def standard_nodes(model: ir.Model, op_type: str) -> list[ir.Node]:
    """The graph's nodes of a standard operator, in their order."""
    return [node for node in model.graph if node.domain in STANDARD_DOMAINS and node.op_type == op_type]


def require(node: ir.Node, holds: bool, what: str) -> None:
    """Refuse a form of an operator that a pass does not know.

    Raises:
        BackendError: `holds` is false.
    """
    if not holds:
        raise BackendError(f"{node.op_type} node {node.name!r} cannot be lowered: {what}")


def static_dims(value: ir.Value, *axes: int) -> tuple[int, ...]:
    """Dimensions that must be known when the graph is lowered.

    Raises:
        BackendError: one of them is not.
    """
    shape = value.shape
    if shape is None or any(not isinstance(shape[axis], int) for axis in axes):
        raise BackendError(f"tensor {value.name!r} has shape {shape}, whose axes {axes} must be known to lower it")
    return tuple(int(shape[axis]) for axis in axes)  # type: ignore[arg-type]


def lowest(dtype: ir.DataType) -> float:
    """A number that softmax turns into 0 and that stays finite when scores are added to it."""
    return float(ml_dtypes.finfo(dtype.numpy()).min) / 2


def _serial(graph: ir.Graph) -> int:
    serial = graph.meta.get("iwp.lowered", 0)
    graph.meta["iwp.lowered"] = serial + 1
    return int(serial)
