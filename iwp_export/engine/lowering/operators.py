"""Operators that a TensorRT's parser lacks or has no kernel for, as others that it takes; the pass of each operator."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from iwp_export.errors import BackendError

STANDARD_DOMAINS = ("", "ai.onnx")


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
        serial = self._graph.meta["iwp.lowered"] = self._graph.meta.get("iwp.lowered", 0) + 1
        for index, value in enumerate(made.outputs):
            value.name = f"{self._node.outputs[0].name}.{op_type}.{serial}.{index}"
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


class Expansion(ir.passes.InPlacePass):
    """Replaces the graph's nodes of some standard operators, one by one."""

    op_types: tuple[str, ...]

    def applies(self, node: ir.Node) -> bool:
        """Whether to replace a node of `op_types`."""
        return True

    def expand(self, build: Rewriter, node: ir.Node) -> None:
        """Put other nodes in the place of one."""
        raise NotImplementedError

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        standard = [node for node in model.graph if node.domain in STANDARD_DOMAINS and node.op_type in self.op_types]
        nodes = [node for node in standard if self.applies(node)]
        for node in nodes:
            self.expand(Rewriter(model.graph, node), node)
        return ir.passes.PassResult(model, bool(nodes))


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


class ExpandAttention(Expansion):
    """Replace Attention (opset 23; 4-D, no cache inside, no causal flag) by primitive operators.

    Grouped keys and values are repeated for their query heads: TensorRT fuses that form, but not one that broadcasts
    over a fifth axis, which takes four times the memory. A mask of booleans becomes one addend that all layers with
    that mask share.

    Args:
        keep: element types, by numpy name, whose nodes stay as they are.
    """

    op_types = ("Attention",)

    def __init__(self, keep: Collection[str] = ()) -> None:
        super().__init__()
        self.keep = keep
        self._biases: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def applies(self, node: ir.Node) -> bool:
        return _dtype(node).numpy().name not in self.keep

    def expand(self, build: Rewriter, node: ir.Node) -> None:
        query, key, value, mask = _operands(node)
        dtype = _dtype(node)
        (heads, size), (kv_heads,) = static_dims(query, 1, 3), static_dims(key, 1)
        require(node, heads % kv_heads == 0, f"{heads} query heads are no multiple of {kv_heads}")
        # Not the key: TensorRT 10.3 is reported to be silently wrong where a key is transposed and then scaled.
        query = build.op("Mul", query, build.scalar(node.attributes.get_float("scale", size**-0.5), dtype))
        if heads != kv_heads:
            key, value = (_repeat(build, states, heads // kv_heads) for states in (key, value))
        scores = build.op("MatMul", query, build.op("Transpose", key, perm=[0, 1, 3, 2]))
        if mask is not None:
            if (mask, dtype) not in self._biases:
                # Softmax turns the least number into 0; half of it stays finite when scores are added.
                lowest = build.scalar(float(ml_dtypes.finfo(dtype.numpy()).min) / 2, dtype)
                whether = mask.dtype == ir.DataType.BOOL
                bias = build.op("Where", mask, build.scalar(0.0, dtype), lowest, dtype=dtype) if whether else mask
                self._biases[mask, dtype] = bias
            scores = build.op("Add", scores, self._biases[mask, dtype])
        build.replace(build.op("MatMul", build.op("Softmax", scores, axis=-1), value))


def _repeat(build: Rewriter, states: ir.Value, times: int) -> ir.Value:
    """Keys or values [B, Hkv, S, d] as [B, Hkv * times, S, d], each head `times` times in a row."""
    kv_heads, size = static_dims(states, 1, 3)
    grouped = build.op("Expand", build.op("Unsqueeze", states, build.ints(2)), build.ints(1, 1, times, 1, 1))
    return build.op("Reshape", grouped, build.ints(0, kv_heads * times, -1, size))


def _operands(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value | None]:
    present = [value for value in node.inputs if value is not None]
    require(node, 3 <= len(present) == len(node.inputs) <= 4, "it has a cache among its inputs")
    require(node, all(v.shape is not None and len(v.shape) == 4 for v in present), "its inputs are not 4-D")
    require(node, not any(out.uses() or out.is_graph_output() for out in node.outputs[1:]), "it has several outputs")
    attributes = node.attributes
    require(node, attributes.get_int("is_causal", 0) == 0, "is_causal is set")
    require(node, attributes.get_float("softcap", 0.0) == 0.0, "softcap is set")
    query, key, value = present[:3]
    return query, key, value, present[3] if len(present) == 4 else None


def _dtype(node: ir.Node) -> ir.DataType:
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    require(node, dtype is not None, "its element type is unknown")
    assert dtype is not None
    return dtype


class AccumulateInFloat32(Expansion):
    """Cast the operands of float16 products to float32, and the product back.

    A strongly typed TensorRT chooses the accumulator of a float16 product itself. It fuses this form into one product
    of float16 operands with a float32 accumulator. The casts of weights are nodes of the graph: the weights themselves
    stay float16. bfloat16 is left as it is: tensor cores sum it in float32 only.
    """

    op_types = ("MatMul", "Gemm")

    def applies(self, node: ir.Node) -> bool:
        return node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT16

    def expand(self, build: Rewriter, node: ir.Node) -> None:
        wide = [build.cast(operand, ir.DataType.FLOAT) for operand in node.inputs if operand is not None]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        build.replace(build.cast(build.op(node.op_type, *wide, **attributes), ir.DataType.FLOAT16))


class ExpandIntegerClip(Expansion):
    """Replace Clip of whole numbers by Max with the lower and Min with the upper bound."""

    op_types = ("Clip",)

    def applies(self, node: ir.Node) -> bool:
        whole = node.inputs[0] is not None and node.inputs[0].dtype in (ir.DataType.INT32, ir.DataType.INT64)
        return whole and any(bound is not None for bound in node.inputs[1:])

    def expand(self, build: Rewriter, node: ir.Node) -> None:
        value = node.inputs[0]
        assert value is not None
        for op_type, bound in zip(("Max", "Min"), node.inputs[1:], strict=False):
            if bound is not None:
                value = build.op(op_type, value, bound)
        build.replace(value)


class ExpandRMSNormalization(Expansion):
    """Replace RMSNormalization (opset 23, over the last axis)."""

    op_types = ("RMSNormalization",)

    def expand(self, build: Rewriter, node: ir.Node) -> None:
        states, scale = node.inputs
        assert states is not None and scale is not None
        rank = -1 if states.shape is None else len(states.shape) - 1
        require(node, node.attributes.get_int("axis", -1) in (-1, rank), "it is over several axes")
        require(node, node.attributes.get_int("stash_type", 1) == ir.DataType.FLOAT, "its statistics are not float32")
        half = states.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        wide = build.cast(states, ir.DataType.FLOAT) if half else states
        mean = build.op("ReduceMean", build.op("Mul", wide, wide), build.ints(-1), keepdims=1)
        epsilon = build.scalar(node.attributes.get_float("epsilon", 1e-5), wide.dtype)
        normal = build.op("Div", wide, build.op("Sqrt", build.op("Add", mean, epsilon)))
        if half:
            assert states.dtype is not None
            normal = build.cast(normal, states.dtype)
        build.replace(build.op("Mul", normal, scale))


class ExpandRotaryEmbedding(Expansion):
    """Replace RotaryEmbedding (opset 23; states [B, H, S, d], caches [B, S, d / 2], halves not interleaved)."""

    op_types = ("RotaryEmbedding",)

    def __init__(self) -> None:
        super().__init__()
        self._angles: dict[ir.Value, ir.Value] = {}

    def expand(self, build: Rewriter, node: ir.Node) -> None:
        operands = [value for value in node.inputs if value is not None]
        require(node, len(operands) == len(node.inputs) == 3, "it takes position ids")
        states, *caches = operands
        require(node, states.shape is not None and len(states.shape) == 4, "its states are not 4-D")
        require(node, all(c.shape is not None and len(c.shape) == 3 for c in caches), "its angles are not 3-D")
        require(node, node.attributes.get_int("interleaved", 0) == 0, "its halves are interleaved")
        rotated = node.attributes.get_int("rotary_embedding_dim", 0)
        require(node, rotated in (0, *static_dims(states, 3)), "it rotates a part of the head only")
        for cache in caches:
            if cache not in self._angles:  # one for all heads of all layers
                self._angles[cache] = build.op("Unsqueeze", cache, build.ints(1))
        cos, sin = (self._angles[cache] for cache in caches)
        low, high = build.ops("Split", 2, states, axis=-1, num_outputs=2)
        new_low = build.op("Sub", build.op("Mul", low, cos), build.op("Mul", high, sin))
        new_high = build.op("Add", build.op("Mul", low, sin), build.op("Mul", high, cos))
        build.replace(build.op("Concat", new_low, new_high, axis=-1))
