"""Tensors of a checkpoint that are read when they are needed, block by block: a model never passes through memory."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import EllipsisType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from iwp_export.errors import CheckpointError, os_reason

FLOATS: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Element types of safetensors files that weights may have; the others, of quantised models, need more than a cast."""

BLOCK_BYTES = 1 << 20
"""How much of a tensor is read, cast and checked at a time."""

LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header, little-endian (its format's description)."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file, in its bytes from `start` to `stop`.

    The library maps the file, and checks its header whenever it is opened.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    stop: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def read(self) -> npt.NDArray:
        """The whole tensor."""
        with _opened(self.file) as file:
            return file.get_tensor(self.name)

    def blocks(self) -> Iterator[tuple[slice | EllipsisType, npt.NDArray]]:
        """The tensor in slices of its first axis, each with the place where it belongs."""
        if not self.shape:
            yield ..., self.read()
            return
        if not self.size:
            return
        step = max(BLOCK_BYTES // (self.size // self.shape[0] * FLOATS[self.dtype].itemsize), 1)
        with _opened(self.file) as file:
            stored = file.get_slice(self.name)
            for start in range(0, self.shape[0], step):
                stop = min(start + step, self.shape[0])
                yield slice(start, stop), stored[start:stop]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name; no weight is read.

    Raises:
        CheckpointError: the file is not safetensors, or its header contradicts itself or the file's size.
    """
    with _opened(path) as tensors, path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
        found = {}
        for name in tensors.keys():  # noqa: SIM118 (no dictionary)
            entry = header[name]
            start, stop = (LENGTH_BYTES + length + offset for offset in entry["data_offsets"])
            found[name] = StoredTensor(path, name, entry["dtype"], tuple(entry["shape"]), start, stop)
        return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "np") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}; download it again") from error


SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Index:
    """The index of a sharded checkpoint: the file of each tensor, and what else it says."""

    path: Path
    weight_map: Mapping[str, str]
    metadata: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Index:
        """Read an index.

        Raises:
            CheckpointError: it is missing or damaged, or names a file that is not safetensors or lies outside.
        """
        try:
            data = json.loads(path.read_bytes())
            weight_map, metadata = data["weight_map"], data.get("metadata", {})
            if not isinstance(metadata, dict) or not weight_map or set(map(type, weight_map.values())) != {str}:
                raise TypeError("weight_map must give each tensor the name of its file")
        except FileNotFoundError as error:
            raise CheckpointError(f"{path.parent} lacks {path.name}; download it again") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged ({error!r}); download it again") from error
        for name in sorted(set(weight_map.values())):
            check_name(name, f"{path} names")
        return cls(path, weight_map, metadata)

    @property
    def files(self) -> list[str]:
        """Names of the shards, in the order in which transformers loads them."""
        return sorted(set(self.weight_map.values()))


def weight_index(folder: Path, named: str | None = None) -> Index | None:
    """The index of a folder's weights, or None if they are one file.

    Args:
        folder: the checkpoint's.
        named: the file that its config.json names as `transformers_weights`, if it does.

    Raises:
        CheckpointError: there are no weights, more than one set of them, or a kind that is not loaded.
    """
    if named is not None:
        check_name(named, f"{folder / 'config.json'} names", (".safetensors", ".safetensors.index.json"))
        return Index.read(folder / named) if named.endswith(".json") else None
    index = Index.read(folder / INDEX) if (folder / INDEX).is_file() else None
    if not (folder / SINGLE).is_file():
        return index
    if index is not None and index.files != [SINGLE]:
        other = next(name for name in index.files if name != SINGLE)
        raise CheckpointError(
            f"{folder} holds two sets of weights, {SINGLE} and those of {INDEX} ({other}, ...); "
            "remove the one that is not meant"
        )
    return index


def stored_tensors(folder: Path, named: str | None = None) -> dict[str, StoredTensor]:
    """Every tensor that transformers would load, by its name in the files; their headers are read and checked.

    Raises:
        CheckpointError: as `weight_index`; or a file is missing, damaged, or not what the index says.
    """
    index = weight_index(folder, named)
    files = index.files if index else [named or SINGLE]
    missing = [name for name in files if not (folder / name).is_file()]
    if missing and not index and named is None:
        raise CheckpointError(f"{folder} has no weights: {_without_weights(folder)}")
    if missing:
        source = f"its {index.path.name} names" if index else "its config.json names"
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which {source}; download it again")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in read_header(folder / file).items():
            if name in tensors:
                raise CheckpointError(
                    f"{folder} holds {name} twice, in {tensors[name].file.name} and {file}; download it again"
                )
            tensors[name] = tensor
    if index is not None:
        for name, file in index.weight_map.items():
            if name not in tensors or tensors[name].file != folder / file:
                raise CheckpointError(
                    f"{file} does not hold {name}, as {index.path} says: "
                    "they are of different checkpoints; download them again"
                )
    return tensors


def check_name(name: str, subject: str, endings: Iterable[str] = (".safetensors",)) -> None:
    """Refuse the name of a file that lies outside of its folder or that is not safetensors.

    Raises:
        CheckpointError: such a name.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or re.search(r"[\\:\0\n]", name) or not name.endswith(tuple(endings)):
        raise CheckpointError(f"{subject} {name!r}, which is no safetensors file of its folder; download it again")


def _without_weights(folder: Path) -> str:
    """What a folder without weights has in their place."""
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        return f"{pickles[0]} is pickled and can run code when opened; convert it to safetensors with save_pretrained"
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    if others:
        return f"transformers does not load {', '.join(others)} but {SINGLE} or the files of {INDEX}"
    return f"expected {SINGLE} or {INDEX}"


HEAD_BYTES = 4 << 10
"""How much of each tensor counts."""


def checkpoint_digest(config: Path, tensors: Mapping[str, StoredTensor]) -> str:
    """SHA-256 over the values of config.json and, of each tensor, its name, type, shape and first 4 KiB.

    The order is that of the tensors' names, so that neither the layout of config.json nor the division of the weights
    into files matters. Any fine-tuning changes it; a value changed by hand deep in a tensor does not.

    Raises:
        CheckpointError: a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        digest.update(_line(json.loads(config.read_bytes())))
        for name in sorted(tensors):
            tensor = tensors[name]
            with tensor.file.open("rb") as file:
                file.seek(tensor.start)
                head = file.read(min(tensor.stop - tensor.start, HEAD_BYTES))
            digest.update(_line([name, tensor.dtype, tensor.shape]) + head)
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename or config.parent}: {os_reason(error)}") from error
    return digest.hexdigest()


def _line(values: object) -> bytes:
    """JSON on a line of its own, whatever the order of keys."""
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode() + b"\n"
