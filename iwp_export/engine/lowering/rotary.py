"""RotaryEmbedding as products and sums of the two halves of a head."""

from __future__ import annotations

import onnx_ir as ir

from iwp_export.engine.lowering.rewrite import Rewriter, require, standard_nodes, static_dims


class ExpandRotaryEmbedding(ir.passes.InPlacePass):
    """Replace RotaryEmbedding (opset 23; states [B, H, S, d], caches [B, S, d / 2], halves not interleaved)."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        angles: dict[ir.Value, ir.Value] = {}
        nodes = standard_nodes(model, "RotaryEmbedding")
        for node in nodes:
            _expand(model.graph, node, angles)
        return ir.passes.PassResult(model, bool(nodes))


def _expand(graph: ir.Graph, node: ir.Node, angles: dict[ir.Value, ir.Value]) -> None:
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
