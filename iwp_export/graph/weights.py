"""Tensors of a checkpoint that are read when they are needed, block by block: a model never passes through memory."""

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
