"""Which files an ONNX graph reads, from its protobuf and without the `onnx` package."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from iwp_export.bundle.schema import Flaw

MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
    "Entry": {},
}
"""Fields of onnx.proto that lead to `TensorProto.external_data`, by number; all other fields are skipped."""
KEY, VALUE, OP_TYPE = 1, 2, 4
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types; protobuf's groups (3, 4) are in no ONNX file."""


def external_locations(path: Path) -> set[str]:
    """The `location` of each external tensor of a graph: names relative to the graph's folder.

    It reads every tensor that the format has a place for: initializers, attributes, sparse tensors, those of subgraphs,
    functions and training graphs. It refuses `EPContext` nodes, by which an execution provider reads a compiled model
    from a file. Files that a library of custom operators would read are out of its sight.

    Raises:
        Flaw: the file is not an ONNX graph, or has such a node.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise Flaw(f"{path.name} is not an ONNX graph")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _locations(content)
            except (IndexError, ValueError) as error:
                raise Flaw(f"{path.name} is not an ONNX graph ({error})") from error


def _locations(content: mmap.mmap) -> set[str]:
    found = set()
    messages = [("Model", 0, len(content))]
    while messages:
        kind, start, end = messages.pop()
        known = MESSAGES[kind]
        entry = {KEY: b"", VALUE: b""}
        for field, first, last in _byte_fields(content, start, end):
            if field in known:
                messages.append((known[field], first, last))
            elif kind == "Entry" and field in entry:  # as in protobuf, the last one counts
                entry[field] = content[first:last]
            elif kind == "Node" and field == OP_TYPE and content[first : min(last, first + 10)] == b"EPContext":
                raise Flaw("a graph has an EPContext node, which reads a file of its own")
        if entry[KEY] == b"location":
            found.add(entry[VALUE].decode())
    return found


def _byte_fields(content: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field of a message that is bytes, text or a message itself."""
    while position < end:
        tag, position = _varint(content, position)
        if not 8 <= tag < 1 << 32:
            raise ValueError(f"field {tag >> 3} at byte {position}")
        wire, length = tag & 7, 0
        if wire == VARINT:
            _, position = _varint(content, position)
        elif wire == BYTES:
            length, position = _varint(content, position)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + length > end:
            raise ValueError(f"a field ends behind byte {end}")
        if wire == BYTES:
            yield tag >> 3, position, position + length
        position += length


def _varint(content: mmap.mmap, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a number of more than ten bytes at byte {position}")
