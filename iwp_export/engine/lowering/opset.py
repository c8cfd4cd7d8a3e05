"""An older opset for a lowered graph, once every node is shown to mean the same there."""

from __future__ import annotations

import onnx_ir as ir

from iwp_export.engine.lowering.rewrite import STANDARD_DOMAINS
from iwp_export.errors import BackendError

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
