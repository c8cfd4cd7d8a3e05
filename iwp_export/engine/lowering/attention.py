"""Attention as matrix products and a softmax, for parsers without the operator and types without a kernel."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from iwp_export.engine.lowering.rewrite import Rewriter, lowest, require, standard_nodes, static_dims


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
