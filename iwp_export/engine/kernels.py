"""The CUDA kernels of the pruning op behind a small interface, which the plugin gets from outside."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from iwp_export.errors import BackendError

LIBRARY_VARIABLE = "IWP_SELECT_TOKENS"
"""Names a library of the kernels that is taken in the place of one that is compiled here."""
PLUGIN_VARIABLE = "IWP_TENSORRT_PLUGIN"
"""Names a library with the C++ plugin, which is then used to run engines in the place of the plugin in Python."""

MAX_BATCH, MAX_KV_HEADS, MAX_TOKENS, MAX_HEAD_DIM = 65535, 4096, 1 << 20, 256
DATA_TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
SIMILARITIES = {"dual_weight": 0, "value": 1, "key": 2, "kernel": 3}
DUPLICATION_NORMS = {"none": 0, "minmax": 1}
SELECTS = {"mmr": 0, "coverage": 1}
"""Numbers of the enumerations in plugins/cuda/include/iwp_select_tokens.h."""

ALIGNMENT = 256
"""Bytes to whose multiples the workspace and each array in it are aligned."""
MATRIX_TOKENS = 4096
PARTIAL_TILES, TILE_PAIRS, PANEL = 288, 128 * 64, 32
"""kMatrixTokens, kMaxPartialTiles, kTileRows * kTileColumns, kPanel in plugins/cuda/src/problem.h."""


@dataclass(frozen=True)
class SelectionShape:
    """Sizes of one selection: B, Hkv, S (text and visual together), d, K, and the element type of keys and values."""

    batch: int
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
    similarity: str
    duplication_norm: str
    select: str


@dataclass(frozen=True)
class SelectionAddresses:
    """Device addresses of dense arrays; see `iwp_select_tokens.h`."""

    importance: int
    key: int
    value: int
    is_visual: int
    kept_index: int
    workspace: int


class KernelLibrary(Protocol):
    """What the plugin needs of a kernel library."""

    def workspace_bytes(self, shape: SelectionShape, options: SelectionOptions) -> int:
        """Bytes of scratch memory that suffice for a shape and for smaller ones; 0 for one that the kernels refuse."""

    def enqueue(
        self,
        shape: SelectionShape,
        options: SelectionOptions,
        addresses: SelectionAddresses,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        """Enqueue the selection on a CUDA stream; returns at once.

        Args:
            workspace_bytes: the scratch memory that there is at `addresses.workspace`.

        Raises:
            BackendError: the kernels refused the call, for want of scratch memory too, or did not start.
        """


class _Params(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("batch", "kv_heads", "tokens", "head_dim", "num_kept")),
        *((name, ctypes.c_int32) for name in ("data_type", "similarity", "duplication_norm")),
        *((name, ctypes.c_int32) for name in ("select", "chunk", "growth")),
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
                f"remove it or, if {LIBRARY_VARIABLE} names it, unset that, and it is compiled again"
            ) from error
        self._workspace.restype, self._workspace.argtypes = ctypes.c_size_t, [ctypes.POINTER(_Params)]
        self._select.restype = ctypes.c_int
        self._select.argtypes = [
            ctypes.POINTER(_Params),
            *[ctypes.c_void_p] * 6,
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
        arrays = (a.importance, a.key, a.value, a.is_visual, a.kept_index, a.workspace)
        code = self._select(ctypes.byref(_params(shape, options)), *arrays, workspace_bytes, stream)
        if code:
            raise BackendError(f"the pruning kernels failed: {self._error_string(code).decode()}")


class NoKernels:
    """Stands in where an engine is built and no kernel runs: it knows the kernels' sizes, running is an error."""

    def workspace_bytes(self, shape: SelectionShape, options: SelectionOptions) -> int:
        """What `iwp_select_tokens_workspace` says, to the byte: engines store it, whichever plugin built them."""
        fits = (
            0 <= shape.batch <= MAX_BATCH
            and 1 <= shape.kv_heads <= MAX_KV_HEADS
            and 1 <= shape.head_dim <= MAX_HEAD_DIM
            and 0 <= shape.num_kept <= shape.tokens <= MAX_TOKENS
        )
        # The matrix of pairs goes with the longest prompt that still has one, which may be shorter than `tokens`.
        lengths = (shape.tokens, min(shape.tokens, MATRIX_TOKENS))
        return max(_laid_out(shape, options, tokens) for tokens in lengths) if fits else 0

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


def _laid_out(shape: SelectionShape, options: SelectionOptions, tokens: int) -> int:
    """`LayOutWorkspace` in plugins/cuda/src/select_tokens.cu: arrays of 4-byte words, each from an aligned place on."""
    covers = options.select == "coverage"
    compares = covers or options.penalty > 0
    rows = tokens if compares and tokens <= MATRIX_TOKENS else 0
    if covers and tokens > MATRIX_TOKENS:
        rows = shape.num_kept
    words = [
        shape.batch,  # num_visual
        *[shape.batch * tokens] * 2,  # visual_index, chunk
        *[shape.batch * shape.kv_heads * tokens] * 2,  # square, inverse_norm
        *[shape.batch * 2 * tokens] * 3,  # priority, likeness_max, likeness_min
        shape.batch * rows * _up(tokens, 4),  # matrix
        PARTIAL_TILES * TILE_PAIRS if compares and shape.kv_heads > 1 else 0,  # partial
        PARTIAL_TILES,  # tiles_done
        shape.batch,  # arrived
        shape.batch * 2 * PANEL * _up(tokens, 4) if covers else 0,  # residual
        shape.batch * PANEL * shape.num_kept if covers else 0,  # panel_factor
    ]
    return sum(_up(4 * count, ALIGNMENT) for count in words)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _params(shape: SelectionShape, options: SelectionOptions) -> _Params:
    return _Params(
        batch=shape.batch,
        kv_heads=shape.kv_heads,
        tokens=shape.tokens,
        head_dim=shape.head_dim,
        num_kept=shape.num_kept,
        data_type=DATA_TYPES[shape.data_type],
        similarity=SIMILARITIES[options.similarity],
        duplication_norm=DUPLICATION_NORMS[options.duplication_norm],
        select=SELECTS[options.select],
        chunk=options.chunk,
        growth=options.growth,
        penalty=options.penalty,
    )
