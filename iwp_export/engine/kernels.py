"""The CUDA kernels of the pruning op behind a small interface, which the plugin gets from outside."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from iwp_export.errors import BackendError

LIBRARY_VARIABLE = "IWP_SELECT_TOKENS"
"""Names a library of the kernels that is taken in the place of one that is compiled here."""
PLUGIN_VARIABLE = "IWP_TENSORRT_PLUGIN"
"""Names a library with the C++ plugin, which is then used to run engines in the place of the plugin in Python."""

MAX_HEAD_DIM = 256
DATA_TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
HEADS = {"softmax": 0, "raw": 1}
DUPLICATION_NORMS = {"none": 0, "minmax": 1}
"""Numbers of the enumerations in plugins/cuda/include/iwp_select_tokens.h."""

PAIR_MATRIX_TOKENS = 4096
"""Up to this many tokens the kernels hold a matrix of all pairs; a longer prompt may need less scratch memory."""
PARTIAL_SUMS_BYTES = 288 * (128 * 64 + 1) * 4
ALIGNMENT = 256
WORKSPACE_ARRAYS = 16


@dataclass(frozen=True)
class SelectionShape:
    """Sizes of one selection: B, H, Hkv, S (text and visual together), d, K, and the inputs' element type."""

    batch: int
    heads: int
    kv_heads: int
    tokens: int
    head_dim: int
    num_kept: int
    data_type: str


@dataclass(frozen=True)
class SelectionOptions:
    """The op's attributes that the kernels take; names as in `PruningSettings`."""

    chunk: int
    growth: int
    penalty: float
    heads: str
    duplication_norm: str


@dataclass(frozen=True)
class SelectionAddresses:
    """Device addresses of dense arrays; see `iwp_select_tokens.h`."""

    query: int
    key: int
    key_rotated: int
    value: int
    is_visual: int
    kept_index: int
    workspace: int


class KernelLibrary(Protocol):
    """What the plugin needs of a kernel library."""

    def workspace_bytes(self, shape: SelectionShape, options: SelectionOptions) -> int:
        """Bytes of scratch memory for one shape; 0 for a shape that the kernels refuse."""

    def enqueue(
        self,
        shape: SelectionShape,
        options: SelectionOptions,
        addresses: SelectionAddresses,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        """Enqueue the selection on a CUDA stream; returns at once.

        Raises:
            BackendError: the kernels refused the call or did not start.
        """


class _Params(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("batch", "heads", "kv_heads", "tokens", "head_dim", "num_kept")),
        *((name, ctypes.c_int32) for name in ("data_type", "heads_weighting", "duplication_norm", "chunk", "growth")),
        ("penalty", ctypes.c_float),
    )


class SharedKernels:
    """`libiwp_select_tokens.so` over ctypes.

    Raises:
        BackendError: the file is not that library.
    """

    def __init__(self, path: Path) -> None:
        try:
            library = ctypes.CDLL(str(path))
            self._workspace = library.iwp_select_tokens_workspace
            self._select = library.iwp_select_tokens
            self._error_string = library.iwp_select_tokens_error_string
        except (OSError, AttributeError) as error:
            raise BackendError(
                f"{path} is no usable library of the pruning kernels ({error}): "
                f"remove it or, if {LIBRARY_VARIABLE} names it, unset that, and it is compiled anew"
            ) from error
        self._workspace.restype, self._workspace.argtypes = ctypes.c_size_t, [ctypes.POINTER(_Params)]
        self._select.restype = ctypes.c_int
        self._select.argtypes = [
            ctypes.POINTER(_Params),
            *[ctypes.c_void_p] * 7,
            ctypes.c_size_t,
            ctypes.c_void_p,
        ]
        self._error_string.restype, self._error_string.argtypes = ctypes.c_char_p, [ctypes.c_int]

    def workspace_bytes(self, shape: SelectionShape, options: SelectionOptions) -> int:
        """See `KernelLibrary.workspace_bytes`."""
        return int(self._workspace(ctypes.byref(_params(shape, options))))

    def enqueue(
        self,
        shape: SelectionShape,
        options: SelectionOptions,
        addresses: SelectionAddresses,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        """See `KernelLibrary.enqueue`."""
        a = addresses
        arrays = (a.query, a.key, a.key_rotated, a.value, a.is_visual, a.kept_index, a.workspace)
        code = self._select(ctypes.byref(_params(shape, options)), *arrays, workspace_bytes, stream)
        if code:
            raise BackendError(f"the pruning kernels failed: {self._error_string(code).decode()}")


class NoKernels:
    """Stands in where an engine is built and no kernel runs: sizes are upper bounds, running is an error."""

    def workspace_bytes(self, shape: SelectionShape, options: SelectionOptions) -> int:
        """An upper bound of what the kernels need."""
        tokens = shape.tokens
        floats = tokens * (shape.heads + 2 * shape.kv_heads + 10) + 2 * shape.heads * (tokens // 32 + 1)
        pairs = tokens * (tokens + 4) if tokens <= PAIR_MATRIX_TOKENS else 0
        return shape.batch * (floats + pairs) * 4 + PARTIAL_SUMS_BYTES + WORKSPACE_ARRAYS * ALIGNMENT

    def enqueue(
        self,
        shape: SelectionShape,
        options: SelectionOptions,
        addresses: SelectionAddresses,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        """Always refuses."""
        raise BackendError("the pruning kernels are not loaded: this stands in for them while an engine is built")


def largest_workspace(kernels: KernelLibrary, shape: SelectionShape, options: SelectionOptions) -> int:
    """Bytes that suffice for every number of tokens up to `shape.tokens`: shorter prompts may need more than longer."""
    lengths = {shape.tokens, min(shape.tokens, PAIR_MATRIX_TOKENS)}
    return max(
        kernels.workspace_bytes(replace(shape, tokens=n, num_kept=min(n, shape.num_kept)), options) for n in lengths
    )


def _params(shape: SelectionShape, options: SelectionOptions) -> _Params:
    return _Params(
        batch=shape.batch,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        tokens=shape.tokens,
        head_dim=shape.head_dim,
        num_kept=shape.num_kept,
        data_type=DATA_TYPES[shape.data_type],
        heads_weighting=HEADS[options.heads],
        duplication_norm=DUPLICATION_NORMS[options.duplication_norm],
        chunk=options.chunk,
        growth=options.growth,
        penalty=options.penalty,
    )
