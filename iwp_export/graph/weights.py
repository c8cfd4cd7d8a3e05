"""Weights of a checkpoint as tensors that are read only when they are written: a model never passes through memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from safetensors import SafetensorError, safe_open

from iwp_export.errors import CheckpointError

FLOATS: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Element types of safetensors files that weights may have; the others, of quantised models, need more than a cast."""

BLOCK_BYTES = 1 << 20
"""How much of a tensor is read, cast and checked at a time."""

TILE = 256
"""Rows and columns of a tile that fit a core's cache; six times as fast as one copy at 11008 x 4096."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file. The library maps the file, and checks its header whenever it is opened."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

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
    with _opened(path) as file:
        names: list[str] = file.keys()
        slices = ((name, file.get_slice(name)) for name in names)
        return {name: StoredTensor(path, name, s.get_dtype(), tuple(s.get_shape())) for name, s in slices}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "np") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}; download it again") from error


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
        array = np.empty(shape, dtype.numpy())
        target = array.T if transpose else array
        for place, block in tensor.blocks():
            copy = copy_by_tiles if transpose else np.copyto
            copy(target[place], block.astype(array.dtype, copy=False))
        return ir.Tensor(array, name=name)

    return ir.LazyTensor(load, dtype=dtype, shape=ir.Shape(shape), name=name)


def copy_by_tiles(target: npt.NDArray, matrix: npt.NDArray) -> None:
    """Copy a matrix into one that lies the other way round in memory: a plain copy misses the cache at each step."""
    for row in range(0, matrix.shape[0], TILE):
        for column in range(0, matrix.shape[1], TILE):
            tile = np.s_[row : row + TILE, column : column + TILE]
            target[tile] = matrix[tile]
