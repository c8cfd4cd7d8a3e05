"""`iwp::SelectTokens` as a TensorRT plugin in Python (IPluginV3), for `tensorrt` and `tensorrt_rtx` alike."""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from iwp_export.engine.kernels import (
    MAX_HEAD_DIM,
    MAX_KV_HEADS,
    MAX_TOKENS,
    NUMBERS,
    KernelLibrary,
    SelectionAddresses,
    SelectionOptions,
    SelectionShape,
)
from iwp_export.errors import BackendError
from iwp_export.pruning.onnx_function import DOMAIN, OP_TYPE, VERSION

ATTRIBUTES: dict[str, type] = {
    "chunk": np.int32,
    "growth": np.int32,
    "penalty": np.float32,
    "similarity": str,
    "duplication_norm": str,
    "select": str,
}
"""The node's attributes as plugin fields: int32, float32 or text (CHAR), one value each."""

FIELDS: dict[str, type] = {**ATTRIBUTES, "workspace": np.int64}
"""What an engine stores: also the bytes of scratch memory that TensorRT was asked for when the engine was built."""

IMPORTANCE, KEY, VALUE, IS_VISUAL, KEPT_INDEX = range(5)
"""Inputs and outputs in TensorRT's numbering, which leaves shape inputs (num_kept) out."""


def options_from_fields(fields: Mapping[str, Any]) -> SelectionOptions:
    """Read the op's attributes.

    Raises:
        BackendError: one is missing, or the kernels do not implement it.
    """
    if missing := sorted(ATTRIBUTES.keys() - fields.keys()):
        raise BackendError(f"the {OP_TYPE} node lacks the attributes {', '.join(missing)}; export the bundle again")
    for name, value in fields.items():
        if ATTRIBUTES.get(name) is str and value not in NUMBERS[name]:
            raise BackendError(f"{name} must be one of {', '.join(NUMBERS[name])}, the {OP_TYPE} node has {value!r}")
    options = SelectionOptions(**{name: fields[name] for name in ATTRIBUTES})
    if options.chunk < 1 or options.growth < 1 or not 0 <= options.penalty < np.inf:
        raise BackendError(f"the {OP_TYPE} node has chunk, growth or penalty out of range: {options}")
    return options


def make_creator(trt: Any, kernels: KernelLibrary, report: Callable[[str], None]) -> Any:
    """A plugin creator for one of TensorRT's modules.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        kernels: what runs the selection.
        report: gets a line for every error: TensorRT swallows a callback's exceptions.
    """
    plugin_class = _plugin_class(trt, kernels, report)

    class SelectTokensCreator(trt.IPluginCreatorV3One):
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace, self.plugin_version = OP_TYPE, DOMAIN, str(VERSION)
            self._fields = _Fields(trt, {name: "none" if kind is str else 0 for name, kind in ATTRIBUTES.items()})
            self.field_names = self._fields.collection

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            try:
                values = _from_fields(fields)
                options, workspace = options_from_fields(values), values.get("workspace", 0)
                if phase == trt.TensorRTPhase.RUNTIME and workspace < 1:
                    raise BackendError(f"the engine does not say how much scratch memory {OP_TYPE} has; build it again")
                return plugin_class(options, workspace)
            except BackendError as error:
                report(str(error))
                return None

    return SelectTokensCreator()


def _plugin_class(trt: Any, kernels: KernelLibrary, report: Callable[[str], None]) -> type:
    types = {trt.float32: "float32", trt.float16: "float16", trt.bfloat16: "bfloat16"}

    class SelectTokensPlugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
        def __init__(self, options: SelectionOptions, workspace: int) -> None:
            for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
                base.__init__(self)
            self.num_outputs = 1
            self.plugin_name, self.plugin_namespace, self.plugin_version = OP_TYPE, DOMAIN, str(VERSION)
            self.options = options
            self.workspace = workspace  # bytes that TensorRT was asked for, 0 before

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return SelectTokensPlugin(self.options, self.workspace)

        def get_output_data_types(self, input_types: Any) -> Any:
            return [trt.int64]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> Any:
            kept = trt.DimsExprs(2)
            kept[0], kept[1] = inputs[IS_VISUAL][0], shape_inputs[0][0]
            return [kept]

        def supports_format_combination(self, position: int, tensors: Any, num_inputs: int) -> bool:
            tensor = tensors[position].desc
            if tensor.format != trt.TensorFormat.LINEAR:
                return False
            if position in (KEY, VALUE):
                return tensor.type in types and tensor.type == tensors[KEY].desc.type
            return tensor.type == {IMPORTANCE: trt.float32, IS_VISUAL: trt.int32, KEPT_INDEX: trt.int64}[position]

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            # TensorRT-RTX configures a copy for each profile; one that serves several is granted what the largest asks.
            self.workspace = max(self.workspace, self.get_workspace_size(inputs, outputs))

        def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
            with _reporting(report):
                greatest = [list(tensor.max) for tensor in (*inputs[:KEPT_INDEX], outputs[0])]
                return _workspace(kernels, _shape(greatest, types[inputs[KEY].desc.type]), self.options)

        def get_fields_to_serialize(self) -> Any:
            values = {**dataclasses.asdict(self.options), "workspace": self.workspace}
            self._serialized = _Fields(trt, values)  # TensorRT reads it after this returns
            return self._serialized.collection

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            pass

        def set_tactic(self, tactic: int) -> None:
            pass

        def enqueue(self, inputs: Any, outputs: Any, sources: Any, results: Any, workspace: int, stream: int) -> None:
            with _reporting(report):
                dims = [list(tensor.dims) for tensor in (*inputs[:KEPT_INDEX], outputs[0])]
                shape = _shape(dims, types[inputs[KEY].type])
                if not dims[IMPORTANCE] == dims[IS_VISUAL] == [shape.batch, shape.tokens]:
                    raise BackendError(f"{OP_TYPE} got importance and is_visual of other sizes than its keys: {dims}")
                addresses = SelectionAddresses._make([*sources[:KEPT_INDEX], results[0], workspace])
                kernels.enqueue(shape, self.options, addresses, self.workspace, stream)

    return SelectTokensPlugin


def _workspace(kernels: KernelLibrary, shape: SelectionShape, options: SelectionOptions) -> int:
    """Bytes that the kernels need for the greatest shape of a profile.

    Raises:
        BackendError: they do not take so much.
    """
    # A profile's num_kept and tokens are set apart, so that the former may be the greater one.
    shape = dataclasses.replace(shape, num_kept=min(shape.num_kept, shape.tokens))
    if not (size := kernels.workspace_bytes(shape, options)):
        limits = f"{MAX_TOKENS} tokens and {MAX_KV_HEADS} heads"
        raise BackendError(f"the CUDA kernels take up to {limits}; the engine is to take {shape}")
    return size


@contextlib.contextmanager
def _reporting(report: Callable[[str], None]) -> Iterator[None]:
    """Report an exception before TensorRT swallows it."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, BackendError)
        report(str(error) if known else "".join(traceback.format_exception_only(error)).strip())
        raise


def _shape(dims: list[list[int]], data_type: str) -> SelectionShape:
    """The sizes of a call from those of the plugin's inputs and its output."""
    batch, kv_heads, tokens, head_dim = dims[KEY]
    if dims[VALUE] != dims[KEY] or not 1 <= head_dim <= MAX_HEAD_DIM:
        raise BackendError(
            f"the CUDA kernels take keys and values of one head size up to {MAX_HEAD_DIM}; "
            f"the model has keys {dims[KEY]} and values {dims[VALUE]}"
        )
    return SelectionShape(batch, kv_heads, tokens, head_dim, dims[KEPT_INDEX][1], data_type)


class _Fields:
    """A collection of plugin fields with the arrays that they point into: TensorRT copies nothing and owns nothing."""

    def __init__(self, trt: Any, values: Mapping[str, Any]) -> None:
        types = {
            str: trt.PluginFieldType.CHAR,
            np.int32: trt.PluginFieldType.INT32,
            np.int64: trt.PluginFieldType.INT64,
            np.float32: trt.PluginFieldType.FLOAT32,
        }
        self._arrays = {
            name: np.frombuffer(value.encode(), np.int8) if FIELDS[name] is str else np.array([value], FIELDS[name])
            for name, value in values.items()
        }
        self.collection = trt.PluginFieldCollection(
            [trt.PluginField(name, array, types[FIELDS[name]]) for name, array in self._arrays.items()]
        )


def _from_fields(fields: Any) -> dict[str, Any]:
    """Values by name; a graph's whole numbers may come as int64, and text with or without an end mark."""
    values: dict[str, Any] = {}
    for field in fields:
        if field.name not in FIELDS:
            continue
        if FIELDS[field.name] is str:
            values[field.name] = bytes(field.data).rstrip(b"\0").decode()
        else:
            number = np.asarray(field.data).reshape(-1)[0]
            values[field.name] = float(number) if FIELDS[field.name] is np.float32 else int(number)
    return values
