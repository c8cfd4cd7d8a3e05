"""Clip of integers as Max and Min: TensorRT's parser long took floating point only."""

from __future__ import annotations

import onnx_ir as ir

from iwp_export.engine.lowering.rewrite import Rewriter, standard_nodes


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
