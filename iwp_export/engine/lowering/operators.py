"""Attention as matrix products and a softmax, for parsers without the operator and types without a kernel."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from iwp_export.engine.lowering.rewrite import HALF_TYPES, Rewriter, lowest, require, standard_nodes, static_dims


class ExpandAttention(ir.passes.InPlacePass):
    """Replace Attention (opset 23; 4-D, no cache inside, no causal flag) by primitive operators.

    Grouped keys and values are repeated for their query heads: TensorRT fuses that form, but not one that broadcasts
    over a fifth axis, which takes four times the memory. A mask of booleans becomes one addend that all layers with
    that mask share.

    Args:
        keep: element types, by numpy name, whose nodes stay as they are.
    """

    def __init__(self, keep: Collection[str] = ()) -> None:
        super().__init__()
        self.keep = frozenset(keep)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        biases: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        nodes = [node for node in standard_nodes(model, "Attention") if _dtype(node).numpy().name not in self.keep]
        for node in nodes:
            _expand(model.graph, node, biases)
        return ir.passes.PassResult(model, bool(nodes))


def _expand(graph: ir.Graph, node: ir.Node, biases: dict[tuple[ir.Value, ir.DataType], ir.Value]) -> None:
    query, key, value, mask = _operands(node)
    dtype = _dtype(node)
    (heads, size), (kv_heads,) = static_dims(query, 1, 3), static_dims(key, 1)
    require(node, heads % kv_heads == 0, f"{heads} query heads are no multiple of {kv_heads}")
    build = Rewriter(graph, node)
    # Not the key: TensorRT 10.3 is reported to be silently wrong where a key is transposed and then scaled.
    query = build.op("Mul", query, build.scalar(node.attributes.get_float("scale", size**-0.5), dtype))
    if heads != kv_heads:
        key, value = (_repeat(build, states, heads // kv_heads) for states in (key, value))
    scores = build.op("MatMul", query, build.op("Transpose", key, perm=[0, 1, 3, 2]))
    if mask is not None:
        if (mask, dtype) not in biases:
            biases[mask, dtype] = _bias(build, mask, dtype)
        scores = build.op("Add", scores, biases[mask, dtype])
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


def _bias(build: Rewriter, mask: ir.Value, dtype: ir.DataType) -> ir.Value:
    if mask.dtype != ir.DataType.BOOL:
        return mask
    return build.op("Where", mask, build.scalar(0.0, dtype), build.scalar(lowest(dtype), dtype), dtype=dtype)


def _dtype(node: ir.Node) -> ir.DataType:
    query = node.inputs[0]
    require(node, query is not None and query.dtype is not None, "its element type is unknown")
    assert query is not None and query.dtype is not None
    return query.dtype


PRODUCTS = ("MatMul", "Gemm")


class AccumulateInFloat32(ir.passes.InPlacePass):
    """Cast the operands of float16 products to float32, and the product back.

    A strongly typed TensorRT chooses the accumulator of a float16 product itself. It fuses this form into one product
    of float16 operands with a float32 accumulator. The casts of weights are nodes of the graph: the weights themselves
    stay float16. bfloat16 is left as it is: tensor cores sum it in float32 only.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for op_type in PRODUCTS for node in standard_nodes(model, op_type) if _is_half(node)]
        for node in nodes:
            _widen(model.graph, node)
        return ir.passes.PassResult(model, bool(nodes))


def _is_half(node: ir.Node) -> bool:
    return node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT16


def _widen(graph: ir.Graph, node: ir.Node) -> None:
    build = Rewriter(graph, node)
    wide = [build.cast(operand, ir.DataType.FLOAT) for operand in node.inputs if operand is not None]
    product = build.op(node.op_type, *wide, **{name: attribute.value for name, attribute in node.attributes.items()})
    build.replace(build.cast(product, ir.DataType.FLOAT16))


class ExpandIntegerClip(ir.passes.InPlacePass):
    """Replace Clip of whole numbers by Max with the lower and Min with the upper bound."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [n for n in standard_nodes(model, "Clip") if n.inputs[0] is not None and _is_integer(n.inputs[0])]
        for node in nodes:
            build = Rewriter(model.graph, node)
            value = node.inputs[0]
            assert value is not None
            for op_type, bound in zip(("Max", "Min"), node.inputs[1:], strict=False):
                if bound is not None:
                    value = build.op(op_type, value, bound)
            if value is not node.inputs[0]:
                build.replace(value)
        return ir.passes.PassResult(model, bool(nodes))


def _is_integer(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.INT32, ir.DataType.INT64)


class ExpandRMSNormalization(ir.passes.InPlacePass):
    """Replace RMSNormalization (opset 23, over the last axis)."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = standard_nodes(model, "RMSNormalization")
        for node in nodes:
            _expand_norm(model.graph, node)
        return ir.passes.PassResult(model, bool(nodes))


def _expand_norm(graph: ir.Graph, node: ir.Node) -> None:
    states, scale = node.inputs
    assert states is not None and scale is not None
    rank = -1 if states.shape is None else len(states.shape) - 1
    require(node, node.attributes.get_int("axis", -1) in (-1, rank), "it is over several axes")
    require(node, node.attributes.get_int("stash_type", 1) == ir.DataType.FLOAT, "its statistics are not float32")
    build = Rewriter(graph, node)
    half = states.dtype in HALF_TYPES
    wide = build.cast(states, ir.DataType.FLOAT) if half else states
    mean = build.op("ReduceMean", build.op("Mul", wide, wide), build.ints(-1), keepdims=1)
    epsilon = build.scalar(node.attributes.get_float("epsilon", 1e-5), wide.dtype)
    normal = build.op("Div", wide, build.op("Sqrt", build.op("Add", mean, epsilon)))
    if half:
        assert states.dtype is not None
        normal = build.cast(normal, states.dtype)
    build.replace(build.op("Mul", normal, scale))


class ExpandRotaryEmbedding(ir.passes.InPlacePass):
    """Replace RotaryEmbedding (opset 23; states [B, H, S, d], caches [B, S, d / 2], halves not interleaved)."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        angles: dict[ir.Value, ir.Value] = {}
        nodes = standard_nodes(model, "RotaryEmbedding")
        for node in nodes:
            _expand_rotary(model.graph, node, angles)
        return ir.passes.PassResult(model, bool(nodes))


def _expand_rotary(graph: ir.Graph, node: ir.Node, angles: dict[ir.Value, ir.Value]) -> None:
    operands = [value for value in node.inputs if value is not None]
    require(node, len(operands) == len(node.inputs) == 3, "it takes position ids")
    states, *caches = operands
    require(node, states.shape is not None and len(states.shape) == 4, "its states are not 4-D")
    require(node, all(c.shape is not None and len(c.shape) == 3 for c in caches), "its angles are not 3-D")
    require(node, node.attributes.get_int("interleaved", 0) == 0, "its halves are interleaved")
    rotated = node.attributes.get_int("rotary_embedding_dim", 0)
    require(node, rotated in (0, *static_dims(states, 3)), "it rotates a part of the head only")
    build = Rewriter(graph, node)
    for cache in caches:
        if cache not in angles:  # one for all heads of all layers
            angles[cache] = build.op("Unsqueeze", cache, build.ints(1))
    cos, sin = (angles[cache] for cache in caches)
    low, high = build.ops("Split", 2, states, axis=-1, num_outputs=2)
    new_low = build.op("Sub", build.op("Mul", low, cos), build.op("Mul", high, sin))
    new_high = build.op("Add", build.op("Mul", low, sin), build.op("Mul", high, cos))
    build.replace(build.op("Concat", new_low, new_high, axis=-1))
