"""Matrix products of float16 that are summed in float32."""

from __future__ import annotations

import onnx_ir as ir

from iwp_export.engine.lowering.rewrite import Rewriter, standard_nodes

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
