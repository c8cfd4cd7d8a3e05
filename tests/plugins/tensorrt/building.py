"""The plugin and its harness, compiled: by g++ alone for tests on the host, and by CMake as users do."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

PLUGINS = Path(__file__).parents[3] / "plugins"
SOURCES = PLUGINS / "tensorrt"
HEADER_FOLDERS = ("include", "include/x86_64-linux-gnu", "include/aarch64-linux-gnu")


def find_headers(tensorrt_root: Path) -> Path:
    """The folder of TensorRT's headers, as CMakeLists.txt looks for it."""
    found = [tensorrt_root / f for f in HEADER_FOLDERS if (tensorrt_root / f / "NvInferRuntime.h").is_file()]
    assert found, f"TENSORRT_ROOT is {tensorrt_root}, which has no include/NvInferRuntime.h"
    return found[0]


def find_cuda_headers() -> Path | None:
    """The CUDA toolkit's headers, which TensorRT's include."""
    nvcc = shutil.which("nvcc")
    toolkits = [Path(nvcc).resolve().parents[1]] if nvcc else []
    folders = [toolkit / "include" for toolkit in (*toolkits, Path("/usr/local/cuda"))]
    return next((folder for folder in folders if (folder / "cuda_runtime_api.h").is_file()), None)


def build_plugin(output: Path, headers: Path, kernels: Path, cuda_headers: Path) -> Path:
    """Compile the plugin, warnings as errors, over `kernels`: a library of the kernels' C interface in nvcc's place."""
    sources = map(str, sorted(SOURCES.glob("*.cpp")))
    exports = f"-Wl,--version-script={SOURCES / 'exports.map'}"
    _compile(output, headers, cuda_headers, *sources, str(kernels), f"-Wl,-rpath,{kernels.parent}", exports)
    return output


def build_harness(output: Path, headers: Path, cuda_headers: Path) -> Path:
    """Compile harness.cpp."""
    _compile(output, headers, cuda_headers, str(Path(__file__).with_name("harness.cpp")))
    return output


def _compile(output: Path, headers: Path, cuda_headers: Path, *arguments: str) -> None:
    # -O2: from there on the compiler replaces virtual calls whose target it believes to know.
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden", "-shared"]
    includes = ["-isystem", str(headers), "-isystem", str(cuda_headers), f"-I{PLUGINS / 'cuda' / 'include'}"]
    command = ["g++", *flags, *includes, "-o", str(output), *arguments, "-Wl,--no-undefined", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def configure(folder: Path, *definitions: str) -> subprocess.CompletedProcess[str]:
    """Run CMake's first step on the plugins' project, into `folder`."""
    command = ["cmake", "-S", str(PLUGINS), "-B", str(folder), *definitions]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def build(folder: Path, target: str) -> subprocess.CompletedProcess[str]:
    """Run CMake's second step."""
    command = ["cmake", "--build", str(folder), "--target", target]
    return subprocess.run(command, capture_output=True, text=True, check=False)
