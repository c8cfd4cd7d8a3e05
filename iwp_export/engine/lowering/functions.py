"""The pruning op as TensorRT has to see it: a plugin's node, and no function that could stand in for it."""

from __future__ import annotations

import onnx_ir as ir

from iwp_export.errors import BackendError
from iwp_export.pruning.onnx_function import DOMAIN, INPUTS, OP_TYPE, VERSION

IS_VISUAL = INPUTS.index("is_visual")


class StripFunctions(ir.passes.InPlacePass):
    """Remove the bodies of model-local functions: some releases of TensorRT silently prefer them to the plugin."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = bool(model.functions)
        model.functions.clear()
        return ir.passes.PassResult(model, modified)


class CheckPluginNodes(ir.passes.InPlacePass):
    """Refuse a graph whose pruning nodes TensorRT would not take as plugins, or would shape wrongly."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        top = set(plugin_nodes(model))
        for node in [*model.graph.all_nodes(), *(n for f in model.functions.values() for n in f.all_nodes())]:
            if node.domain == DOMAIN and node not in top:
                raise BackendError(
                    f"node {node.name!r} ({DOMAIN}::{node.op_type}) is not a {OP_TYPE} at the top level of the graph, "
                    "so TensorRT would not find its plugin; export the bundle again"
                )
        expected = {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION)}
        for node in top:
            for name, value in expected.items():
                found = node.attributes.get_string(name)
                if found != value:
                    raise _wrong(node, f"{name} is {found!r}, not {value!r}")
            shapes = list(node.attributes.get_ints("tensorrt_plugin_shape_input_indices", []))
            if shapes != [INPUTS.index("num_kept")]:
                raise _wrong(node, f"tensorrt_plugin_shape_input_indices is {shapes}")
            num_kept = node.inputs[INPUTS.index("num_kept")]
            if num_kept is None or num_kept.shape is None or num_kept.shape.dims != (1,):
                raise _wrong(node, "num_kept is not a tensor of shape [1]")
        return ir.passes.PassResult(model, False)


class CastFlags(ir.passes.InPlacePass):
    """Give the pruning nodes `is_visual` as int32: TensorRT's headers list bool as unsupported in a plugin's inputs."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = plugin_nodes(model)
        for node in nodes:
            flags = node.inputs[IS_VISUAL]
            if flags is None:
                raise _wrong(node, "it has no is_visual")
            cast = ir.node("Cast", [flags], {"to": ir.DataType.INT32})
            cast.outputs[0].name = f"{flags.name}.int32"
            cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.INT32), flags.shape
            model.graph.insert_before(node, cast)
            node.replace_input_with(IS_VISUAL, cast.outputs[0])
        return ir.passes.PassResult(model, bool(nodes))


def plugin_nodes(model: ir.Model) -> list[ir.Node]:
    """The pruning op's nodes at the top level of the graph."""
    return [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, OP_TYPE)]


def _wrong(node: ir.Node, problem: str) -> BackendError:
    return BackendError(f"node {node.name!r} is no plugin for TensorRT: {problem}; export the bundle again")
