"""What tells one checkpoint from another, without reading all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from iwp_export.errors import CheckpointError, os_reason
from iwp_export.graph.weights import StoredTensor

HEAD_BYTES = 4 << 10
"""How much of each tensor counts."""
LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header, little-endian (its format's description)."""


def checkpoint_digest(config: Path, tensors: Mapping[str, StoredTensor]) -> str:
    """SHA-256 over the values of config.json and, of each tensor, its name, type, shape and first 4 KiB.

    The order is that of the tensors' names, so that neither the layout of config.json nor the division of the weights
    into files matters. Any fine-tuning changes it; a value changed by hand deep in a tensor does not.

    Args:
        config: config.json.
        tensors: what `Checkpoint.weights` found; their headers were checked.

    Raises:
        CheckpointError: a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        values = json.loads(config.read_bytes())
        digest.update(_line(values))
        places = _places(tensor.file for tensor in tensors.values())
        for name in sorted(tensors):
            tensor = tensors[name]
            start, stop = places[tensor.file][name]
            with tensor.file.open("rb") as file:
                file.seek(start)
                head = file.read(min(stop - start, HEAD_BYTES))
            digest.update(_line([name, tensor.dtype, tensor.shape]) + head)
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename or config.parent}: {os_reason(error)}") from error
    return digest.hexdigest()


def _line(values: object) -> bytes:
    """JSON on a line of its own, whatever the order of keys."""
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _places(files: Iterable[Path]) -> dict[Path, dict[str, tuple[int, int]]]:
    """Of each file, where its tensors begin and end, by name."""
    places = {}
    for path in set(files):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        first = LENGTH_BYTES + length
        offsets = {name: entry["data_offsets"] for name, entry in header.items()}
        places[path] = {name: (first + begin, first + end) for name, (begin, end) in offsets.items()}
    return places
