"""RMSNormalization as primitive operators, its statistics in float32."""

from __future__ import annotations

import onnx_ir as ir

from iwp_export.engine.lowering.rewrite import HALF_TYPES, Rewriter, require, standard_nodes


class ExpandRMSNormalization(ir.passes.InPlacePass):
    """Replace RMSNormalization (opset 23, over the last axis)."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = standard_nodes(model, "RMSNormalization")
        for node in nodes:
            _expand(model.graph, node)
        return ir.passes.PassResult(model, bool(nodes))


def _expand(graph: ir.Graph, node: ir.Node) -> None:
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
