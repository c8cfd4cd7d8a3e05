"""What a machine has: packages that import, GPUs, compilers, memory. Every probe survives a broken install."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iwp_export.engine import kernel_library

IMPORT_TIMEOUT = 180
"""Seconds for one import: torch takes a minute from a slow SD card."""
TOOL_TIMEOUT = 20
BOARD_FILE = Path("/proc/device-tree/model")
"""Where Linux on ARM boards (Jetson) names the board."""

# In a process of its own: a broken native library may abort, and torch need not stay in memory.
PROBE = """
import importlib.metadata, json, sys
name, distribution = sys.argv[1:]
found = {"version": None, "problem": None, "providers": []}
try:
    module = __import__(name)
    found["version"] = str(getattr(module, "__version__", None) or importlib.metadata.version(distribution))
    found["providers"] = list(getattr(module, "get_available_providers", list)())
except BaseException as error:
    absent = isinstance(error, ModuleNotFoundError) and error.name == name
    text = " ".join(str(error).split())
    found["problem"] = "not installed" if absent else f"{type(error).__name__}: {text}"
print()
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Imported:
    """How an import went; `problem` is None where it went well. `providers` are those of ONNX Runtime."""

    version: str | None
    problem: str | None
    providers: tuple[str, ...] = ()


def import_all(modules: Mapping[str, str]) -> dict[str, Imported]:
    """Try to import each module, given with the distribution it is from, in a process of its own."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return dict(zip(modules, pool.map(_import_one, modules, modules.values()), strict=True))


def _import_one(module: str, distribution: str) -> Imported:
    command = [sys.executable, "-W", "ignore", "-c", PROBE, module, distribution]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=IMPORT_TIMEOUT)
    except subprocess.TimeoutExpired:
        return Imported(None, f"its import did not end in {IMPORT_TIMEOUT} s")
    except OSError as error:
        return Imported(None, f"cannot start {sys.executable}: {error}")
    try:
        found = json.loads(done.stdout.rstrip().splitlines()[-1])
        return Imported(found["version"], found["problem"], tuple(found["providers"]))
    except (ValueError, IndexError, TypeError, KeyError):
        return Imported(None, f"its import ended the process with exit code {done.returncode}")


def describe_machine() -> dict[str, Any]:
    """System, processors, memory and free disk; None for what the system does not tell."""
    total, available = _memory()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "board": _board(),
        "cpus": os.cpu_count(),
        "memory_bytes": total,
        "memory_available_bytes": available,
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
    }


def find_gpus() -> tuple[list[dict[str, str]], str | None]:
    """NVIDIA GPUs, and why there are none."""
    fields = ("name", "compute_cap", "memory.total", "driver_version")
    if shutil.which("nvidia-smi") is None:
        return [], "nvidia-smi is not installed: no NVIDIA driver here"
    output, problem = _tool(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"])
    rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines()]
    gpus = [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]
    return gpus, None if gpus else f"nvidia-smi finds none{f': {problem}' if problem else ''}"


def find_nvcc() -> tuple[str | None, str | None]:
    """The CUDA compiler's version, and why there is none."""
    path = kernel_library.find_nvcc()
    if path is None:
        return None, f"not on PATH, nor in CUDA_HOME, {', '.join(kernel_library.CUDA_FOLDERS)} or a Python package"
    version = kernel_library.nvcc_version(path)
    return version, None if version else f"{path} does not tell its version"


def find_host_compiler() -> tuple[str | None, str | None]:
    """The C++ compiler that nvcc calls, and why there is none."""
    name = os.environ.get("NVCC_CCBIN") or ("cl" if sys.platform == "win32" else "g++")
    path = shutil.which(name)
    return (path, None) if path else (None, f"{name} is not on PATH")


def _tool(command: list[str]) -> tuple[str, str]:
    """Output of a program, and its first words on stderr or the reason that it did not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TOOL_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    if done.returncode != 0:
        return "", (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[0]
    return done.stdout, ""


def _memory() -> tuple[int | None, int | None]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
        return sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    except (AttributeError, OSError, ValueError):
        return None, None


def _board() -> str | None:
    try:
        return BOARD_FILE.read_bytes().rstrip(b"\0").decode(errors="replace")
    except OSError:
        return None
