"""Where the kernels' shared library comes from: a file that the user names, or nvcc, once for each GPU architecture.

As a program it compiles the library for machines that have no nvcc:
python -m iwp_export.engine.kernel_library -o libiwp_select_tokens.so --sm 87
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from iwp_export.cache import cache_folder, whole_file
from iwp_export.device.gpu import Gpu
from iwp_export.device.toolchain import find_nvcc, nvcc_architectures, nvcc_version
from iwp_export.engine.kernels import LIBRARY_VARIABLE, SharedKernels
from iwp_export.errors import BackendError
from iwp_export.progress import progress

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


def architectures_of(nvcc: Path) -> tuple[str, ...]:
    """Those of `ARCHITECTURES` that a compiler makes code for; all if it does not tell."""
    known = nvcc_architectures(nvcc)
    return tuple(sm for sm in ARCHITECTURES if sm in known) or ARCHITECTURES


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
        _compile_into_cache(path, gpu)
    return SharedKernels(path)


def check_kernels(gpu: Gpu) -> None:
    """Whether `find_kernels` has what it needs, without compiling.

    Raises:
        BackendError: it has not.
    """
    if not (os.environ.get(LIBRARY_VARIABLE) or _cached(gpu).is_file()):
        _nvcc_for(gpu)


def _nvcc_for(gpu: Gpu) -> Path:
    """A compiler whose programs the GPU and its driver run."""
    nvcc = _require_nvcc(gpu.cuda)
    version = nvcc_version(nvcc)
    if version is None:
        raise BackendError(f"{nvcc} does not tell its version; to get nvcc: {INSTALL_NVCC}")
    if int(version.split(".")[0]) > gpu.cuda:
        raise BackendError(
            f"{nvcc} is of CUDA {version}, and the driver of {gpu.name} runs CUDA {gpu.cuda} at most: update the "
            f"driver, or install CUDA {gpu.cuda} and set CUDACXX to its nvcc"
        )
    known = nvcc_architectures(nvcc)
    if known and gpu.sm not in known:
        raise BackendError(
            f"{nvcc}, of CUDA {version}, makes no code for SM {gpu.sm} of {gpu.name}, only for "
            f"{', '.join(sorted(known, key=int))}: install another release of CUDA, {gpu.cuda} at most"
        )
    return nvcc


def _require_nvcc(cuda: int | None = None) -> Path:
    nvcc = find_nvcc(cuda)
    if nvcc is None:
        raise BackendError(
            "the pruning kernels must be compiled once for this GPU, and nvcc is not found: "
            f"{INSTALL_NVCC}; or set {LIBRARY_VARIABLE} to a {LIBRARY_NAME} made elsewhere"
        )
    return nvcc


def _cached(gpu: Gpu) -> Path:
    """Where the library for a GPU and its driver is kept; other sources or flags have another place."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sorted(file for folder in INCLUDES for file in folder.iterdir()):
        digest.update(path.read_bytes())
    return cache_folder() / "kernels" / f"{digest.hexdigest()[:16]}-sm{gpu.sm}-cuda{gpu.cuda}" / LIBRARY_NAME


def _compile_into_cache(path: Path, gpu: Gpu) -> None:
    nvcc = _nvcc_for(gpu)
    try:
        with whole_file(path) as library, progress(f"Compiling the pruning kernels for SM {gpu.sm}, once"):
            compile_library(library, [gpu.sm], nvcc)
    except OSError as error:
        raise BackendError(
            f"the pruning kernels cannot be kept in {path.parent} ({error.strerror or error}): "
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from error


def main() -> int:
    """Compile from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Compile the CUDA kernels of the pruning step into a shared library.")
    parser.add_argument("-o", "--output", type=Path, default=Path(LIBRARY_NAME))
    parser.add_argument("--sm", nargs="+", metavar="NN", help="architectures (default: all that nvcc knows)")
    args = parser.parse_args()
    try:
        nvcc = _require_nvcc()
        said = compile_library(args.output, args.sm or architectures_of(nvcc), nvcc, threads=os.cpu_count() or 1)
    except BackendError as error:
        print(f"kernel_library: {error}", file=sys.stderr)
        return 1
    print(said or f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
