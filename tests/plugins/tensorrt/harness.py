"""The plugin's virtual functions from Python, with TensorRT's structures as ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FIELD_TYPES = {"float32": 1, "float64": 2, "int32": 5, "text": 6, "int64": 10}
DATA_TYPES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "bool": 4, "bfloat16": 7, "int64": 8}
LINEAR, VECTORISED = 0, 2
INT32_MAX = 2**31 - 1


class Field(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    )


class Fields(ctypes.Structure):
    _fields_ = (("count", ctypes.c_int32), ("fields", ctypes.POINTER(Field)))


class Dims(ctypes.Structure):
    _fields_ = (("count", ctypes.c_int32), ("d", ctypes.c_int64 * 8))


class TensorDesc(ctypes.Structure):
    _fields_ = (("dims", Dims), ("type", ctypes.c_int32), ("format", ctypes.c_int32), ("scale", ctypes.c_float))


class DynamicTensorDesc(ctypes.Structure):
    _fields_ = (("desc", TensorDesc), ("min", Dims), ("max", Dims), ("opt", Dims))


class Harness:
    """A plugin library, its creator and its log."""

    def __init__(self, harness: Path, plugin: Path) -> None:
        self.calls: Any = ctypes.CDLL(str(harness))
        for name in ("load", "creator", "create", "clone", "attach"):
            getattr(self.calls, name).restype = ctypes.c_void_p
        for name in ("messages", "creator_name", "creator_version", "creator_namespace", "output_shape"):
            getattr(self.calls, name).restype = ctypes.c_char_p
        for name in ("creator_fields", "serialized_fields"):
            getattr(self.calls, name).restype = ctypes.POINTER(Fields)
        self.calls.workspace_size.restype = ctypes.c_size_t
        self.library = ctypes.c_void_p(self.calls.load(str(plugin).encode()))
        assert self.library.value, self.messages()
        self.creator = ctypes.c_void_p(self.calls.creator(self.library))

    def set_logger(self, which: int) -> None:
        """See harness.cpp; forgets the messages so far."""
        self.calls.set_logger(self.library, which)

    def messages(self) -> str:
        return str(self.calls.messages().decode())

    def identity(self) -> tuple[str, ...]:
        kinds = ("name", "version", "namespace")
        return tuple(getattr(self.calls, f"creator_{kind}")(self.creator).decode() for kind in kinds)

    def advertised_fields(self) -> dict[str, int]:
        """Names of the creator's fields and the numbers of their types."""
        collection = self.calls.creator_fields(self.creator).contents
        return {f.name.decode(): f.type for f in collection.fields[: collection.count]}

    def create(
        self, values: Mapping[str, Any], end_mark: bytes = b"", whole: str = "int32", of_engine: bool = False
    ) -> ctypes.c_void_p | None:
        """A plugin with these field values, of a node or of an engine, or None where the creator refuses them."""
        arrays = [_as_array(value, end_mark, whole) for value in values.values()]
        fields = (Field * len(arrays))()
        for field, name, (array, kind) in zip(fields, values, arrays, strict=True):
            field.name, field.data = name.encode(), array.ctypes.data
            field.type, field.length = FIELD_TYPES[kind], array.size
        plugin = self.calls.create(self.creator, ctypes.byref(Fields(len(arrays), fields)), of_engine)
        return ctypes.c_void_p(plugin) if plugin else None

    def copy(self, plugin: ctypes.c_void_p, how: str) -> ctypes.c_void_p:
        return ctypes.c_void_p(getattr(self.calls, how)(plugin))

    def serialized(self, plugin: ctypes.c_void_p) -> dict[str, Any]:
        """What an engine would store."""
        collection = self.calls.serialized_fields(plugin).contents
        return {f.name.decode(): _value(f) for f in collection.fields[: collection.count]}

    def enqueue(
        self,
        plugin: ctypes.c_void_p,
        shapes: Sequence[Sequence[int]],
        data_type: str,
        arrays: Sequence[np.ndarray],
        workspace: int,
    ) -> int:
        """Run on host arrays: the four inputs, then kept_index; 0 or an error."""
        addresses = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        descs = (TensorDesc * len(arrays))(*(d.desc for d in tensors(shapes, data_type)))
        return int(self.calls.enqueue(plugin, descs, addresses, ctypes.c_void_p(workspace)))


def tensors(shapes: Sequence[Sequence[int]], data_type: str) -> Any:
    """Descriptions of the four inputs and the output, for a profile whose every size is the given one."""
    types = ["float32", data_type, data_type, "int32", "int64"]
    descs = (DynamicTensorDesc * len(types))()
    for desc, shape, type_ in zip(descs, shapes, types, strict=True):
        dims = Dims(len(shape), tuple(shape))
        desc.desc = TensorDesc(dims, DATA_TYPES[type_], LINEAR, 1.0)
        desc.min = desc.opt = desc.max = dims
    return descs


def _as_array(value: Any, end_mark: bytes, whole: str) -> tuple[np.ndarray, str]:
    if isinstance(value, str):
        return np.frombuffer(value.encode() + end_mark, np.uint8), "text"
    kind = "float32" if isinstance(value, float) else "int64" if value > INT32_MAX else whole
    return np.array([value], kind), kind


def _value(field: Field) -> Any:
    if field.type == FIELD_TYPES["text"]:
        return ctypes.string_at(field.data, field.length).decode()
    kinds: dict[str, Any] = {"int32": ctypes.c_int32, "int64": ctypes.c_int64, "float32": ctypes.c_float}
    (kind,) = (kind for name, kind in kinds.items() if FIELD_TYPES[name] == field.type)
    return kind.from_address(field.data).value
