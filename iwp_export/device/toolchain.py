"""Compilers on this machine: nvcc, of which there may be several, and the C++ compiler that it calls."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CUDA_FOLDERS = ("/usr/local/cuda/bin", "/usr/local/cuda-*/bin", "/opt/cuda/bin")
"""Where installers put toolkits, one or side by side."""
CUDA_VARIABLES = ("CUDA_HOME", "CUDA_PATH")


def find_nvcc(cuda: int | None = None) -> Path | None:
    """The CUDA compiler: the one that CUDACXX names, else the newest that there is.

    Args:
        cuda: the major version of CUDA that the GPU's driver runs. Newer compilers are passed over, since that driver
            would not run what they make; if all are newer, one is given all the same.

    They are looked for on PATH, in CUDA_HOME, where installers put them, and among NVIDIA's Python packages.
    """
    if named := os.environ.get("CUDACXX"):
        found = shutil.which(named)
        return Path(found) if found else None
    paths = _installed()
    if len(paths) < 2:
        return paths[0] if paths else None
    versions = {path: _number(nvcc_version(path)) for path in paths}
    fitting = [path for path in paths if cuda is None or versions[path][0] <= cuda]
    return max(fitting or paths, key=versions.__getitem__)  # of equal ones the first


def nvcc_version(nvcc: Path) -> str | None:
    """The compiler's version of CUDA, such as `12.6`; None if it does not tell."""
    found = re.search(r"release (\d+\.\d+)", _output(nvcc, "--version"))
    return found[1] if found else None


def nvcc_architectures(nvcc: Path) -> frozenset[str]:
    """Architectures that the compiler makes code for, such as `87`; none if it does not tell."""
    return frozenset(re.findall(r"\bsm_(\d+)\b", _output(nvcc, "--list-gpu-code")))


def explain_nvcc(cuda: int | None = None) -> tuple[str | None, str | None]:
    """The CUDA compiler's version, and why there is none that serves; `cuda` as in `find_nvcc`."""
    path = find_nvcc(cuda)
    if path is None:
        return None, f"not on PATH, nor in CUDA_HOME, {', '.join(CUDA_FOLDERS)} or a Python package"
    version = nvcc_version(path)
    if version is None:
        return None, f"{path} does not tell its version"
    if cuda is not None and _number(version)[0] > cuda:
        return version, f"{path} is of CUDA {version}, the driver runs CUDA {cuda} at most"
    return version, None


def find_host_compiler() -> tuple[str | None, str | None]:
    """The C++ compiler that nvcc calls, and why there is none."""
    name = os.environ.get("NVCC_CCBIN") or ("cl" if sys.platform == "win32" else "g++")
    path = shutil.which(name)
    return (path, None) if path else (None, f"{name} is not on PATH")


def _installed() -> list[Path]:
    """All compilers, each once."""
    homes = [str(Path(home) / "bin") for name in CUDA_VARIABLES if (home := os.environ.get(name))]
    installers = [
        folder for pattern in CUDA_FOLDERS for folder in sorted(map(str, Path("/").glob(pattern.lstrip("/"))))
    ]
    folders = [*os.get_exec_path(), *homes, *installers, *_packaged_toolkits()]
    found: dict[Path, Path] = {}
    for folder in folders:
        if path := shutil.which("nvcc", path=folder):
            found.setdefault(Path(path).resolve(), Path(path))
    return list(found.values())


def _packaged_toolkits() -> list[str]:
    """Folders of the compiler that NVIDIA's Python packages bring (nvidia-cuda-nvcc 13 and later)."""
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec is not None else None
    return [str(folder) for root in roots or () for folder in sorted(Path(root).glob("cu*/bin"), reverse=True)]


def _output(nvcc: Path, option: str) -> str:
    try:
        done = subprocess.run([str(nvcc), option], capture_output=True, text=True, errors="replace", check=False)
    except OSError:
        return ""
    return done.stdout


def _number(version: str | None) -> tuple[int, ...]:
    """A version to compare; one that is not told is older than any."""
    return tuple(map(int, version.split("."))) if version else (0, 0)
