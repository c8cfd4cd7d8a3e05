"""A bundle's graph lowered for a TensorRT: the pruning op as a plugin, and nothing that its parser does not take."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir

from iwp_export.engine.flavour import Target
from iwp_export.engine.lowering.operators import (
    STANDARD_DOMAINS,
    AccumulateInFloat32,
    ExpandAttention,
    ExpandIntegerClip,
    ExpandRMSNormalization,
    ExpandRotaryEmbedding,
)
from iwp_export.errors import BackendError
from iwp_export.pruning.onnx_function import DOMAIN, INPUTS, OP_TYPE, VERSION

IS_VISUAL = INPUTS.index("is_visual")

NATIVE_ATTENTION_TYPES = ("float16", "bfloat16")
"""Element types for which an imported Attention has a kernel."""


class PreparePlugins(ir.passes.InPlacePass):
    """Make the pruning nodes plugins: refuse those that TensorRT would not take as such, or would shape wrongly.

    The bodies of model-local functions go: some releases of TensorRT silently prefer them to the plugin. `is_visual`
    becomes int32: TensorRT's headers list bool as unsupported in a plugin's inputs.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        top = plugin_nodes(model)
        modified = bool(top or model.functions)
        model.functions.clear()
        for node in model.graph.all_nodes():
            if node.domain == DOMAIN and node not in top:
                raise BackendError(
                    f"node {node.name!r} ({DOMAIN}::{node.op_type}) is not a {OP_TYPE} at the top level of the graph, "
                    "so TensorRT would not find its plugin; export the bundle again"
                )
        for node in top:
            _check_plugin(node)
            flags = node.inputs[IS_VISUAL]
            assert flags is not None
            cast = ir.node("Cast", [flags], {"to": ir.DataType.INT32})
            cast.outputs[0].name = f"{flags.name}.int32"
            cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.INT32), flags.shape
            model.graph.insert_before(node, cast)
            node.replace_input_with(IS_VISUAL, cast.outputs[0])
        return ir.passes.PassResult(model, modified)


def plugin_nodes(model: ir.Model) -> list[ir.Node]:
    """The pruning op's nodes at the top level of the graph."""
    return [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, OP_TYPE)]


def _check_plugin(node: ir.Node) -> None:
    attributes, num_kept = node.attributes, node.inputs[INPUTS.index("num_kept")]
    shapes = list(attributes.get_ints("tensorrt_plugin_shape_input_indices", []))
    expected = {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION)}
    if wrong := [name for name, value in expected.items() if attributes.get_string(name) != value]:
        problem = f"{wrong[0]} is {attributes.get_string(wrong[0])!r}, not {expected[wrong[0]]!r}"
    elif shapes != [INPUTS.index("num_kept")]:
        problem = f"tensorrt_plugin_shape_input_indices is {shapes}"
    elif num_kept is None or num_kept.shape is None or num_kept.shape.dims != (1,):
        problem = "num_kept is not a tensor of shape [1]"
    elif node.inputs[IS_VISUAL] is None:
        problem = "it has no is_visual"
    else:
        return
    raise BackendError(f"node {node.name!r} is no plugin for TensorRT: {problem}; export the bundle again")


OLDEST_OPSET, OLDEST_IR = 20, 9
"""What TensorRT's oldest parser takes: standard operators, and the version of the file format that came with them."""

_FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
_WHOLE = frozenset({"INT32", "INT64"})
_NUMBERS = _FLOATS | _WHOLE
_ANY = _NUMBERS | {"BOOL"}
OLDEST_PARSER: dict[str, frozenset[str]] = {
    **dict.fromkeys(("Cast", "Concat", "Expand", "Gather", "GatherND", "Identity", "Reshape", "Shape", "Slice"), _ANY),
    **dict.fromkeys(("Split", "Squeeze", "Transpose", "Unsqueeze", "Where", "Constant"), _ANY),
    **dict.fromkeys(("Add", "Div", "Max", "Min", "Mul", "Neg", "ReduceMax", "Sub"), _NUMBERS),
    **dict.fromkeys(("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Range", "ReduceMean", "ReduceSum"), _NUMBERS),
    **dict.fromkeys(("Conv", "Cos", "Gelu", "Erf", "LayerNormalization", "MatMul", "Pow", "Reciprocal"), _FLOATS),
    **dict.fromkeys(("Exp", "Sigmoid", "Sin", "Softmax", "Sqrt", "Tanh", "Clip"), _FLOATS),
    **dict.fromkeys(("And", "Not", "Or"), frozenset({"BOOL"})),
    "Mod": _WHOLE,
}
"""Element types of the first input, from docs/operators.md of onnx-tensorrt 10.1; later releases only add to them.

That table gives floats for Mod as well, which its importer takes with `fmod` alone.
"""

CONSTANT_AXES = ("ReduceMax", "ReduceMean", "ReduceSum", "Squeeze", "Unsqueeze")
"""Operators whose second input that parser wants as a constant."""


class LowerOpset(ir.passes.InPlacePass):
    """Set the version of the standard operators to the oldest parser's after checking each node against both."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in model.graph.all_nodes():
            if node.domain not in STANDARD_DOMAINS:
                continue
            if problem := schema_problem(node) or parser_problem(node):
                raise BackendError(
                    f"node {node.name!r} ({node.op_type}) cannot be lowered to opset {OLDEST_OPSET}: {problem}"
                )
        model.opset_imports[""] = OLDEST_OPSET
        model.ir_version = OLDEST_IR
        return ir.passes.PassResult(model, True)


def schema_problem(node: ir.Node) -> str:
    """Why a node is not what the standard defines for that opset, or an empty string."""
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op_type, OLDEST_OPSET, "")
    except onnx.defs.SchemaError:
        return "the operator is not in it"
    if unknown := sorted(set(node.attributes) - set(schema.attributes)):
        return f"attribute {unknown[0]} is not in it"
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        return f"it takes {schema.min_input} to {schema.max_input} inputs, the node has {len(node.inputs)}"
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype is None:
            continue
        kind = schema.inputs[min(index, len(schema.inputs) - 1)].type_str
        name = {"FLOAT": "float", "DOUBLE": "double"}.get(value.dtype.name, value.dtype.name.lower())
        text = f"tensor({name})"
        if text not in allowed.get(kind, [kind]):
            return f"input {index} is {text}"
    return ""


def parser_problem(node: ir.Node) -> str:
    """Why TensorRT's oldest parser would not import a node, or an empty string."""
    if node.op_type not in OLDEST_PARSER:
        return f"TensorRT 10.1's parser is not known to take it; known are {', '.join(sorted(OLDEST_PARSER))}"
    operand = node.inputs[0] if node.inputs else None
    if operand is not None and operand.dtype is not None and operand.dtype.name not in OLDEST_PARSER[node.op_type]:
        return f"TensorRT 10.1's parser does not take {operand.dtype.name}"
    if node.op_type in CONSTANT_AXES and len(node.inputs) > 1:
        axes = node.inputs[1]
        producer = None if axes is None else axes.producer()
        if axes is not None and axes.const_value is None and (producer is None or producer.op_type != "Constant"):
            return "its axes are not a constant"
    return ""


def lower(model: ir.Model, target: Target) -> ir.Model:
    """Change a graph, in place, into one that a target's parser takes.

    Args:
        model: a bundle's graph; its weights may be external and are not read.
        target: the TensorRT that will parse it.

    Raises:
        BackendError: the graph has a node that cannot be expressed there.
    """
    passes: list[ir.passes.InPlacePass] = [
        PreparePlugins(),
        ExpandAttention(NATIVE_ATTENTION_TYPES if "Attention" in target.native else ()),
    ]
    if "RotaryEmbedding" not in target.native:
        passes.append(ExpandRotaryEmbedding())
    if "RMSNormalization" not in target.native:
        passes.append(ExpandRMSNormalization())
    if target.opset == OLDEST_OPSET:
        passes.append(ExpandIntegerClip())
    passes.append(AccumulateInFloat32())  # also the products that attention became
    if target.opset == OLDEST_OPSET:
        passes.append(LowerOpset())
    for each in passes:
        each(model)
    return model


def write_lowered(source: Path, weights: Path, folder: Path, target: Target) -> tuple[Path, int]:
    """Lower a bundle's graph into a folder; the weights file is linked there, not copied.

    TensorRT's parser looks for external weights beside the graph. New constants are small and stay in the graph.

    Args:
        source: the bundle's graph.
        weights: its file of weights.
        folder: an existing folder.
        target: the TensorRT that will parse it.

    Returns:
        The lowered graph's path, and how many plugin layers TensorRT must make of it.

    Raises:
        BackendError: see `lower`.
    """
    model = lower(ir.load(source), target)
    used = {t.location for v in model.graph.initializers.values() if isinstance(t := v.const_value, ir.ExternalTensor)}
    if used - {weights.name}:
        raise BackendError(f"{source} has weights in {sorted(map(str, used - {weights.name}))}, not in {weights.name}")
    link_file(weights, folder / weights.name)
    path = folder / source.name
    ir.save(model, path)
    return path, len(plugin_nodes(model))


def link_file(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`: a hard link, a symbolic link, or a copy where there are no links.

    Hard links first: some readers of ONNX refuse weights whose path leads out of the model's folder.
    """
    source = source.resolve()
    for link in (target.hardlink_to, target.symlink_to):
        try:
            link(source)
            return
        except OSError:
            continue
    shutil.copyfile(source, target)
