"""The pruning op as TensorRT has to see it: a plugin's node, and no function that could stand in for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir

from iwp_export.engine.flavour import Target
from iwp_export.engine.lowering.operators import (
    AccumulateInFloat32,
    ExpandAttention,
    ExpandIntegerClip,
    ExpandRMSNormalization,
    ExpandRotaryEmbedding,
)
from iwp_export.engine.lowering.rewrite import STANDARD_DOMAINS
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


IR_VERSIONS = {20: 9, 21: 10, 22: 10, 23: 11}
"""The file format's version that came with an opset."""

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
    """Set the version of the standard operators after checking each node against that version.

    Args:
        version: the opset, at most the graph's own.
        strict: also check operators and element types against `OLDEST_PARSER`.
    """

    def __init__(self, version: int, strict: bool = False) -> None:
        super().__init__()
        self.version = version
        self.strict = strict

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in model.graph.all_nodes():
            if node.domain not in STANDARD_DOMAINS:
                continue
            problem = schema_problem(node, self.version) or (parser_problem(node) if self.strict else "")
            if problem:
                raise BackendError(
                    f"node {node.name!r} ({node.op_type}) cannot be lowered to opset {self.version}: {problem}"
                )
        modified = model.opset_imports.get("") != self.version
        model.opset_imports[""] = self.version
        model.ir_version = min(model.ir_version or 11, IR_VERSIONS.get(self.version, 11))
        return ir.passes.PassResult(model, modified)


def schema_problem(node: ir.Node, version: int) -> str:
    """Why a node is not what the standard defines for an opset, or an empty string."""
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        return "the operator is not in it"
    if schema.deprecated:
        return "the operator is deprecated in it"
    if unknown := sorted(set(node.attributes) - set(schema.attributes)):
        return f"attribute {unknown[0]} is not in it"
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        return f"it takes {schema.min_input} to {schema.max_input} inputs, the node has {len(node.inputs)}"
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype is None:
            continue
        kind = schema.inputs[min(index, len(schema.inputs) - 1)].type_str
        text = f"tensor({_type_name(value.dtype)})"
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


def _type_name(dtype: ir.DataType) -> str:
    return {"FLOAT": "float", "DOUBLE": "double"}.get(dtype.name, dtype.name.lower())


def lower(model: ir.Model, target: Target) -> ir.Model:
    """Change a graph, in place, into one that a target's parser takes.

    Args:
        model: a bundle's graph; its weights may be external and are not read.
        target: the TensorRT that will parse it.

    Raises:
        BackendError: the graph has a node that cannot be expressed there.
    """
    native_attention = target.native_attention_types if "Attention" in target.native else frozenset()
    passes: list[ir.passes.InPlacePass] = [
        StripFunctions(),
        CheckPluginNodes(),
        CastFlags(),
        ExpandAttention(native_attention),
    ]
    if "RotaryEmbedding" not in target.native:
        passes.append(ExpandRotaryEmbedding())
    if "RMSNormalization" not in target.native:
        passes.append(ExpandRMSNormalization())
    if target.strict:
        passes.append(ExpandIntegerClip())
    passes.append(AccumulateInFloat32())  # also the products that attention became
    if target.opset < model.opset_imports[""]:
        passes.append(LowerOpset(target.opset, target.strict))
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
