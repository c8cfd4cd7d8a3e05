"""The CUDA kernels of the pruning op behind a small interface, which the plugin gets from outside."""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from iwp_export.device.gpu import Gpu
from iwp_export.device.machine import find_nvcc, nvcc_architectures
from iwp_export.errors import BackendError
from iwp_export.files import cache_folder, whole_file
from iwp_export.progress import progress

LIBRARY_VARIABLE = "IWP_SELECT_TOKENS"
"""Names a library of the kernels that is taken in the place of one that is compiled here."""
PLUGIN_VARIABLE = "IWP_TENSORRT_PLUGIN"
"""Names a library with the C++ plugin, which is then used to run engines in the place of the plugin in Python."""

MAX_BATCH, MAX_KV_HEADS, MAX_TOKENS, MAX_HEAD_DIM = 65535, 4096, 1 << 20, 256
DATA_TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
SIMILARITIES = {"dual_weight": 0, "value": 1, "key": 2, "kernel": 3}
DUPLICATION_NORMS = {"none": 0, "minmax": 1}
SELECTS = {"mmr": 0, "coverage": 1}
NUMBERS = {
    "data_type": DATA_TYPES,
    "similarity": SIMILARITIES,
    "duplication_norm": DUPLICATION_NORMS,
    "select": SELECTS,
}
"""Numbers of the enumerations in plugins/cuda/include/iwp_select_tokens.h, by parameter, in its order there."""

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


class SelectionAddresses(NamedTuple):
    """Device addresses of dense arrays; see `iwp_select_tokens.h`."""

    importance: int
    key: int
    value: int
    is_visual: int
    kept_index: int
    workspace: int


class _Params(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("batch", "kv_heads", "tokens", "head_dim", "num_kept")),
        *((name, ctypes.c_int32) for name in (*NUMBERS, "chunk", "growth")),
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
        """Bytes of scratch memory that suffice for a shape and for smaller ones; 0 for one that the kernels refuse."""
        return int(self._workspace(ctypes.byref(_params(shape, options))))

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
        if code := self._select(ctypes.byref(_params(shape, options)), *addresses, workspace_bytes, stream):
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

    def enqueue(self, *call: Any) -> None:
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
    values = {**vars(shape), **vars(options)}
    return _Params(**{name: NUMBERS[name][value] if name in NUMBERS else value for name, value in values.items()})


KernelLibrary = SharedKernels | NoKernels
"""What the plugin gets from outside."""

LIBRARY_NAME = "libiwp_select_tokens.so"
INSTALL_NVCC = (
    "pip install 'iwp-export[kernels]' and a C++ compiler (on Jetson: sudo apt install nvidia-jetpack; "
    "for a driver of CUDA 12: NVIDIA's toolkit 12)"
)

ARCHITECTURES = ("75", "80", "86", "87", "89", "90", "110", "120")
"""Turing, A100, Ampere cards, Orin, Ada, Hopper, Thor, Blackwell cards. A compiler knows some of them: 120 came with
CUDA 12.8, 110 with 13.0, and 75 is the oldest that 13.5 has."""

PACKAGED = Path(__file__).parent / "cuda"
"""The kernels' sources in an installed package; in a checkout they are in plugins/cuda."""
SOURCES = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[2] / "plugins" / "cuda"
INCLUDES = (SOURCES / "include", SOURCES / "src")
FLAGS = ("--shared", "-std=c++17", "-O3", "-Xcompiler=-Wall,-Wextra,-fPIC,-fvisibility=hidden")


def source_files() -> list[Path]:
    """The kernels' translation units."""
    return sorted((SOURCES / "src").glob("*.cu"))


def compile_library(output: Path, sms: Sequence[str], nvcc: Path, threads: int = 2) -> str:
    """Compile and link the kernels for architectures such as `87`.

    Args:
        threads: compilations at a time.

    Returns:
        What the compiler said; empty if all is well.

    Raises:
        BackendError: it failed; the message has its first error.
    """
    codes = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in sms]
    includes = [f"-I{path}" for path in INCLUDES]
    files = [str(path) for path in source_files()]
    command = [str(nvcc), *FLAGS, *includes, *codes, f"--threads={threads}", "-o", str(output), *files]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise BackendError(f"{nvcc} does not start ({error.strerror or error}); to get it: {INSTALL_NVCC}") from error
    said = (done.stdout + done.stderr).strip()
    if done.returncode:
        lines = [line for line in said.splitlines() if "error" in line or "fatal" in line] or said.splitlines()[-1:]
        reason = lines[0].strip() if lines else f"exit code {done.returncode}"
        raise BackendError(f"{nvcc} does not compile the pruning kernels for SM {', '.join(sms)}: {reason}")
    return said


def find_kernels(gpu: Gpu) -> SharedKernels:
    """The kernels for a GPU: the library that IWP_SELECT_TOKENS names, or one compiled here now or earlier.

    Raises:
        BackendError: the library is not usable, or none can be compiled.
    """
    if named := os.environ.get(LIBRARY_VARIABLE):
        return SharedKernels(Path(named))
    path = _cached(gpu)
    if not path.is_file():
        nvcc = _nvcc_for(gpu)
        try:
            with whole_file(path) as library, progress(f"Compiling the pruning kernels for SM {gpu.sm}, once"):
                compile_library(library, [gpu.sm], nvcc)
        except OSError as error:
            raise BackendError(
                f"the pruning kernels cannot be kept in {path.parent} ({error.strerror or error}): "
                "set XDG_CACHE_HOME to a folder that can be written"
            ) from error
    return SharedKernels(path)


def check_kernels(gpu: Gpu) -> None:
    """Whether `find_kernels` has what it needs, without compiling.

    Raises:
        BackendError: it has not.
    """
    if not (os.environ.get(LIBRARY_VARIABLE) or _cached(gpu).is_file()):
        _nvcc_for(gpu)


def _nvcc_for(gpu: Gpu | None) -> Path:
    """A compiler whose programs the GPU and its driver run; without a GPU, any."""
    found = find_nvcc(gpu.cuda, gpu.sm) if gpu else find_nvcc()
    if found.path is None or found.problem:
        raise BackendError(
            f"the pruning kernels must be compiled once for this GPU, and {found.problem}: {INSTALL_NVCC}; "
            f"or set CUDACXX to another nvcc, or {LIBRARY_VARIABLE} to a {LIBRARY_NAME} made elsewhere"
        )
    return found.path


def _cached(gpu: Gpu) -> Path:
    """Where the library for a GPU and its driver is kept; other sources or flags have another place."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sorted(file for folder in INCLUDES for file in folder.iterdir()):
        digest.update(path.read_bytes())
    return cache_folder() / "kernels" / f"{digest.hexdigest()[:16]}-sm{gpu.sm}-cuda{gpu.cuda}" / LIBRARY_NAME


def main() -> int:
    """Compile from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Compile the CUDA kernels of the pruning step into a shared library.")
    parser.add_argument("-o", "--output", type=Path, default=Path(LIBRARY_NAME))
    parser.add_argument("--sm", nargs="+", metavar="NN", help="architectures (default: all that nvcc knows)")
    args = parser.parse_args()
    try:
        nvcc = _nvcc_for(None)
        known = nvcc_architectures(nvcc) or ARCHITECTURES
        sms = args.sm or [sm for sm in ARCHITECTURES if sm in known]
        said = compile_library(args.output, sms, nvcc, threads=os.cpu_count() or 1)
    except BackendError as error:
        print(f"kernel_library: {error}", file=sys.stderr)
        return 1
    print(said or f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
