"""The CUDA kernels of `iwp::SelectTokens` from Python: the C interface over ctypes, for tests and measurements."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DATA_TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
HEADS = {"softmax": 0, "raw": 1}
DUPLICATION_NORMS = {"none": 0, "minmax": 1}

WORKSPACE_ALIGNMENT = 256


@dataclass(frozen=True)
class SelectTokensParams:
    """What the host knows of a selection when it enqueues it; see `iwp_select_tokens.h`.

    Attributes:
        batch, heads, kv_heads, tokens, head_dim: B, H, Hkv, S (text and visual) and d.
        num_kept: tokens of each sample that go on, text and visual together.
        data_type: of query, key, key_rotated and value.
        weighting, duplication_norm, chunk, growth, penalty: `PruningSettings`' heads, duplication_norm, ...
    """

    batch: int
    heads: int
    kv_heads: int
    tokens: int
    head_dim: int
    num_kept: int
    data_type: Literal["float32", "float16", "bfloat16"] = "float16"
    weighting: Literal["softmax", "raw"] = "softmax"
    duplication_norm: Literal["none", "minmax"] = "none"
    chunk: int = 2
    growth: int = 2
    penalty: float = 5.0


class _Params(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in (
                "batch",
                "heads",
                "kv_heads",
                "tokens",
                "head_dim",
                "num_kept",
                "data_type",
                "heads_weighting",
                "duplication_norm",
                "chunk",
                "growth",
            )
        ),
        ("penalty", ctypes.c_float),
    )


class SelectTokensError(RuntimeError):
    """The library refused a call or a launch failed; `code` is its return value."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"iwp_select_tokens failed with {code}: {message}")
        self.code = code


class SelectTokensLibrary:
    """A built library, loaded.

    Args:
        path: the shared library, as `plugins.cuda.build` or CMake makes it.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.iwp_select_tokens_workspace.restype = ctypes.c_size_t
        self._library.iwp_select_tokens_workspace.argtypes = [ctypes.POINTER(_Params)]
        self._library.iwp_select_tokens.restype = ctypes.c_int
        self._library.iwp_select_tokens.argtypes = [
            ctypes.POINTER(_Params),
            *[ctypes.c_void_p] * 7,
            ctypes.c_size_t,
            ctypes.c_void_p,
        ]
        self._library.iwp_select_tokens_error_string.restype = ctypes.c_char_p
        self._library.iwp_select_tokens_error_string.argtypes = [ctypes.c_int]

    def workspace_bytes(self, params: SelectTokensParams) -> int:
        """Bytes of scratch memory that `enqueue` needs; 0 for parameters that it refuses."""
        return int(self._library.iwp_select_tokens_workspace(ctypes.byref(_to_c(params))))

    def enqueue(
        self,
        params: SelectTokensParams,
        query: int,
        key: int,
        key_rotated: int,
        value: int,
        is_visual: int,
        kept_index: int,
        workspace: int,
        workspace_bytes: int,
        stream: int = 0,
    ) -> None:
        """Enqueue a selection. Arrays are addresses of dense device memory, `stream` a cudaStream_t.

        Raises:
            SelectTokensError: the library refused the call, or a launch failed.
        """
        code = self._library.iwp_select_tokens(
            ctypes.byref(_to_c(params)),
            query,
            key,
            key_rotated,
            value,
            is_visual,
            kept_index,
            workspace,
            workspace_bytes,
            stream,
        )
        if code:
            raise SelectTokensError(code, self.error_string(code))

    def error_string(self, code: int) -> str:
        """What a return value means, and the remedy."""
        return str(self._library.iwp_select_tokens_error_string(code).decode())


def _to_c(params: SelectTokensParams) -> _Params:
    return _Params(
        params.batch,
        params.heads,
        params.kv_heads,
        params.tokens,
        params.head_dim,
        params.num_kept,
        DATA_TYPES[params.data_type],
        HEADS[params.weighting],
        DUPLICATION_NORMS[params.duplication_norm],
        params.chunk,
        params.growth,
        params.penalty,
    )
