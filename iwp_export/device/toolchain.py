"""Compilers on this machine: nvcc and the C++ compiler that it calls."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CUDA_FOLDERS = ("/usr/local/cuda/bin", "/opt/cuda/bin")
CUDA_VARIABLES = ("CUDA_HOME", "CUDA_PATH")


def find_nvcc() -> Path | None:
    """The CUDA compiler: CUDACXX, on PATH, in CUDA_HOME, where installers put it, or from NVIDIA's Python packages."""
    named = os.environ.get("CUDACXX")
    homes = [str(Path(home) / "bin") for name in CUDA_VARIABLES if (home := os.environ.get(name))]
    folders = os.pathsep.join([*homes, *CUDA_FOLDERS, *_packaged_toolkits()])
    found = shutil.which(named) if named else shutil.which("nvcc") or shutil.which("nvcc", path=folders)
    return Path(found) if found else None


def nvcc_version(nvcc: Path) -> str | None:
    """The compiler's version of CUDA, such as `12.6`; None if it does not tell."""
    try:
        done = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, errors="replace", check=False)
    except OSError:
        return None
    found = re.search(r"release (\d+\.\d+)", done.stdout)
    return found[1] if found else None


def explain_nvcc() -> tuple[str | None, str | None]:
    """The CUDA compiler's version, and why there is none."""
    path = find_nvcc()
    if path is None:
        return None, f"not on PATH, nor in CUDA_HOME, {', '.join(CUDA_FOLDERS)} or a Python package"
    version = nvcc_version(path)
    return version, None if version else f"{path} does not tell its version"


def find_host_compiler() -> tuple[str | None, str | None]:
    """The C++ compiler that nvcc calls, and why there is none."""
    name = os.environ.get("NVCC_CCBIN") or ("cl" if sys.platform == "win32" else "g++")
    path = shutil.which(name)
    return (path, None) if path else (None, f"{name} is not on PATH")


def _packaged_toolkits() -> list[str]:
    """Folders of the compiler that NVIDIA's Python packages bring (nvidia-cuda-nvcc 13 and later)."""
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec is not None else None
    return [str(folder) for root in roots or () for folder in sorted(Path(root).glob("cu*/bin"), reverse=True)]
