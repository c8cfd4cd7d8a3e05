"""Transforms of a freshly traced graph, each a small onnx-ir pass."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from iwp_export.graph.streaming import Losses, streamed
from iwp_export.graph.weights import StoredTensor


class StreamWeights(ir.passes.InPlacePass):
    """Give initializers their values from a checkpoint, read when they are written.

    A matrix whose only uses are transposes, as a linear layer's is, becomes a transposed initializer: no runtime has
    to transpose (and hold twice) what the exporter can write the right way round.

    Args:
        weights: where the value of each initializer lies, by the initializer's name.
        losses: where values are counted that an initializer's element type does not hold.
    """

    def __init__(self, weights: Mapping[str, StoredTensor], losses: Losses) -> None:
        super().__init__()
        self.weights = weights
        self.losses = losses

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for name, value in list(model.graph.initializers.items()):
            if name not in self.weights or value.dtype is None:
                continue
            stored, dtype = self.weights[name], value.dtype
            value.const_value = streamed(name, stored, dtype, self.losses)
            modified = True
            transposes = [node for node in value.consumers() if _swaps_axes(node)]
            if not transposes:
                continue
            turned = ir.Value(name=f"{name}.transposed", type=ir.TensorType(dtype), shape=ir.Shape(stored.shape[::-1]))
            turned.const_value = streamed(f"{name}.transposed", stored, dtype, self.losses, transpose=True)
            model.graph.register_initializer(turned)
            for node in transposes:
                node.outputs[0].replace_all_uses_with(turned)
                model.graph.remove(node, safe=True)
            if not value.uses():
                del model.graph.initializers[name]
        return ir.passes.PassResult(model, modified)


class RenameDimension(ir.passes.InPlacePass):
    """Rename a symbolic dimension everywhere, also inside expressions such as `past_pruned + u0`."""

    def __init__(self, old: str, new: str) -> None:
        super().__init__()
        self.old = old
        self.new = new

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        values = [*model.graph.inputs, *(v for node in model.graph.all_nodes() for v in node.outputs)]
        for value in values:
            if value.shape is None:
                continue
            for axis, dim in enumerate(value.shape):
                text = getattr(dim, "value", None)
                if isinstance(text, str) and self.old in text.split():
                    value.shape[axis] = " ".join(self.new if t == self.old else t for t in text.split())
                    modified = True
        return ir.passes.PassResult(model, modified)


class AddFunction(ir.passes.InPlacePass):
    """Put a model-local function, and the opset of its domain, into the model."""

    def __init__(self, function: ir.Function, version: int) -> None:
        super().__init__()
        self.function = function
        self.version = version

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        model.functions[self.function.identifier()] = self.function
        model.opset_imports[self.function.domain] = self.version
        return ir.passes.PassResult(model, True)


def _swaps_axes(node: ir.Node) -> bool:
    if node.op_type != "Transpose" or node.domain not in ("", "ai.onnx") or node.outputs[0].is_graph_output():
        return False
    return list(node.attributes.get_ints("perm", [1, 0])) == [1, 0]
