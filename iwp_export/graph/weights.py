"""Weights of a checkpoint as tensors that are read only when they are written: a model never passes through memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from iwp_export.errors import CheckpointError

DTYPES: Mapping[str, npt.DTypeLike] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
}
"""Element types of safetensors files that a language model's checkpoint uses."""

MAX_HEADER = 100 << 20
"""The format's own limit on a header's bytes; a larger number means that the file is something else."""


TILE = 256
"""Rows and columns of a tile that fit a core's cache; six times as fast as one copy at 11008 x 4096."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(DTYPES[self.dtype]).itemsize

    def read(self) -> npt.NDArray:
        """The tensor, mapped from the file: its pages are the file's and can be dropped at any time."""
        count = int(np.prod(self.shape, dtype=np.int64))
        if count == 0:
            return np.empty(self.shape, DTYPES[self.dtype])
        raw = np.memmap(self.file, np.uint8, "r", self.offset, (self.nbytes,))
        return raw.view(DTYPES[self.dtype]).reshape(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, from its header alone.

    Raises:
        CheckpointError: the file is not safetensors, or is shorter than its header says.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= MAX_HEADER:
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {
            name: StoredTensor(path, 8 + length + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
            for name, entry in header.items()
        }
        unknown = {t.dtype for t in tensors.values()} - DTYPES.keys()
        if unknown:
            raise ValueError(f"element type {', '.join(sorted(unknown))} is not supported")
        end = max((t.offset + t.nbytes for t in tensors.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}; download it again") from error
    if path.stat().st_size < end:
        raise CheckpointError(f"{path} has {path.stat().st_size} of {end} bytes; download it again")
    return tensors


def renamed(tensors: Mapping[str, StoredTensor], renames: Iterable[tuple[str, str]]) -> dict[str, StoredTensor]:
    """The tensors under the names of the model's modules; of `renames` the first pattern that matches is applied."""
    patterns = [(re.compile(pattern), target) for pattern, target in renames]

    def rename(name: str) -> str:
        for pattern, target in patterns:
            if pattern.search(name):
                return pattern.sub(target, name, count=1)
        return name

    return {rename(name): tensor for name, tensor in tensors.items()}


def streamed(name: str, tensor: StoredTensor, dtype: ir.DataType, transpose: bool = False) -> ir.LazyTensor:
    """An initializer that is read from the checkpoint, cast and transposed when it is written, and then forgotten.

    Args:
        name: the initializer's name.
        tensor: where it lies.
        dtype: element type in the graph.
        transpose: swap the two axes of a matrix.
    """
    shape = tensor.shape[::-1] if transpose else tensor.shape

    def load() -> ir.Tensor:
        array = transposed(tensor.read()) if transpose else tensor.read()
        return ir.Tensor(np.ascontiguousarray(array.astype(dtype.numpy(), copy=False)), name=name)

    return ir.LazyTensor(load, dtype=dtype, shape=ir.Shape(shape), name=name)


def transposed(matrix: npt.NDArray) -> npt.NDArray:
    """The transpose of a matrix, copied tile by tile: a plain copy misses the cache at each step."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for row in range(0, matrix.shape[0], TILE):
        for column in range(0, matrix.shape[1], TILE):
            tile = matrix[row : row + TILE, column : column + TILE]
            out[column : column + TILE, row : row + TILE] = tile.T
    return out
