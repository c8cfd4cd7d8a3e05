"""What this machine has: files of Linux, memory, packages and compilers. Needs no torch."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from iwp_export.version import __version__

TOOL_TIMEOUT = 20
"""Seconds for a program that tells of the machine."""
GREATEST = 2**64 - 1
"""Numbers of the kernel have 64 bits."""
JETSON = Path("/etc/nv_tegra_release")
"""Where Jetson Linux (L4T) says its release."""


def run_tool(*command: str) -> str | None:
    """What a program prints; None if it is missing, fails, hangs or prints nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TOOL_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def read_text(path: Path) -> str | None:
    """A file's text without space and zeros at its ends, as strings of the device tree have; None if unreadable."""
    try:
        content: bytes | None = path.read_bytes()  # None where a chip that is off answers EAGAIN
    except OSError:
        return None
    return content.decode(errors="replace").strip("\0 \t\r\n") if content is not None else None


def read_number(path: Path) -> int | None:
    """The whole number that a file holds."""
    try:
        value = int(read_text(path) or "")
    except ValueError:
        return None
    return value if abs(value) <= GREATEST else None


def find(root: Path, pattern: str) -> list[Path]:
    """Files by an absolute pattern below a folder that stands for `/`, zone10 after zone2."""
    return sorted(root.glob(pattern.lstrip("/")), key=lambda path: (len(str(path)), str(path)))


# Memory

RESERVE_BYTES = 256 << 20
"""Free memory below which a build is stopped: the OOM killer would end the process silently."""
POLL_SECONDS = 0.1
CGROUP = Path("/sys/fs/cgroup")
PROC = Path("/proc/self")
RESET_PEAK = "5"
"""What clear_refs takes to set the high-water mark back to what is resident now (proc(5))."""


def available_bytes() -> int:
    """Memory that this process can still get, swap and a container's limit included."""
    available: int = psutil.virtual_memory().available + psutil.swap_memory().free
    limit, used = read_number(CGROUP / "memory.max"), read_number(CGROUP / "memory.current")
    if limit is None or used is None:
        return available
    cached = re.search(r"^file (\d+)", read_text(CGROUP / "memory.stat") or "", re.M)
    return min(available, limit - used + (int(cached[1]) if cached else 0))


@contextlib.contextmanager
def low_memory() -> Iterator[threading.Event]:
    """An event that is set when free memory is nearly gone, while a build runs in the `with` block."""
    low, stop = threading.Event(), threading.Event()

    def watch() -> None:
        while not low.is_set() and not stop.wait(POLL_SECONDS):
            if available_bytes() < RESERVE_BYTES:
                low.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield low
    finally:
        stop.set()
        thread.join()


def peak_bytes(folder: Path = PROC) -> int | None:
    """The most memory of this process in RAM since `reset_peak`; None where the system does not tell."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", read_text(folder / "status") or "", re.M)
    return int(found[1]) * 1024 if found else None


def reset_peak(folder: Path = PROC) -> bool:
    """Begin to watch for a new peak; False where the system does not let it."""
    try:
        (folder / "clear_refs").write_text(RESET_PEAK)
    except OSError:
        return False
    return True


# Packages

VERSIONS = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "tokenizers",
    "torch",
    "transformers",
)
"""Distributions that figures may depend on."""
IMPORT_TIMEOUT = 180
"""Seconds for one import: torch takes a minute from a slow SD card."""
NO_ARRAYS = "it does not read arrays of this numpy"
"""What is wrong with bindings of TensorRT that were compiled for another numpy."""


@dataclass(frozen=True)
class Imported:
    """How an import went; `problem` is None where it went well. `providers` are those of ONNX Runtime."""

    version: str | None
    problem: str | None
    providers: Sequence[str] = ()


def package_versions() -> dict[str, str]:
    """Versions of what figures may depend on, as far as it is installed, this package and Python included."""
    found = {"iwp-export": __version__, "python": platform.python_version()}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def import_all(modules: Mapping[str, str]) -> dict[str, Imported]:
    """Try to import the module of each distribution.

    Each in a process of its own: a broken native library may abort, and torch need not stay in memory.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return dict(zip(modules, pool.map(_import_elsewhere, modules.values(), modules), strict=True))


def _import_elsewhere(module: str, distribution: str) -> Imported:
    code = f"import {module} as found; from iwp_export.device import machine; machine.tell(found, {distribution!r})"
    command = [sys.executable, "-W", "ignore", "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=IMPORT_TIMEOUT)
    except subprocess.TimeoutExpired:
        return Imported(None, f"its import did not end in {IMPORT_TIMEOUT} s")
    if done.returncode == 0 and done.stdout:
        return Imported(**json.loads(done.stdout.rstrip().splitlines()[-1]))
    said = " ".join(done.stderr.rpartition("\n  ")[2].splitlines()[1:])  # the exception, below its traceback
    if said == f"ModuleNotFoundError: No module named {module!r}":
        return Imported(None, "not installed")
    return Imported(None, said or f"its import ended the process with exit code {done.returncode}")


def tell(module: Any, distribution: str) -> None:
    """Print an `Imported` of a module as JSON, on a line of its own."""
    version = str(getattr(module, "__version__", None) or importlib.metadata.version(distribution))
    problem = NO_ARRAYS if hasattr(module, "PluginField") and not reads_arrays(module) else None
    found = Imported(version, problem, getattr(module, "get_available_providers", list)())
    print("\n" + json.dumps(vars(found)))


def reads_arrays(trt: Any) -> bool:
    """Whether TensorRT's bindings read numpy arrays; those compiled before numpy 2 may misread its arrays.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
    """
    import numpy as np

    values = np.array([1, 2], np.int8)
    try:
        return list(trt.PluginField("probe", values, trt.PluginFieldType.INT8).data) == [1, 2]
    except Exception:  # the bindings raise whatever a numpy that they do not know makes them raise
        return False


# Compilers: nvcc, of which there may be several, and the C++ compiler that it calls

CUDA_FOLDERS = ("/usr/local/cuda/bin", "/usr/local/cuda-*/bin", "/opt/cuda/bin")
"""Where installers put toolkits, one or side by side."""


@dataclass(frozen=True)
class Nvcc:
    """The CUDA compiler: where it is, its version of CUDA, such as `12.6`, and why it does not serve."""

    path: Path | None = None
    version: str | None = None
    problem: str | None = None


def find_nvcc(cuda: int | None = None, sm: str | None = None) -> Nvcc:
    """The CUDA compiler: the one that CUDACXX names, else the newest that there is.

    They are looked for on PATH, in CUDA_HOME, where installers put them, and among NVIDIA's Python packages.

    Args:
        cuda: the major version of CUDA that the GPU's driver runs. Newer compilers are passed over, since that driver
            would not run what they make; if all are newer, one is given all the same, with the problem.
        sm: the architecture that the compiler must make code for, such as `87`.
    """
    named = os.environ.get("CUDACXX")
    paths = filter(None, [shutil.which(named)]) if named else _installed_compilers()
    tools = [(tuple(map(int, (version or "0.0").split("."))), path, version) for path, version in _versions(paths)]
    fitting = [tool for tool in tools if cuda is None or tool[0][0] <= cuda]
    if not tools:
        return Nvcc(problem="nvcc is not found")
    (major, _), path, version = max(fitting or tools, key=lambda tool: tool[0])  # of equal ones the first
    problem = None
    if version is None:
        problem = f"{path} does not tell its version"
    elif cuda is not None and major > cuda:
        problem = f"{path} is of CUDA {version}, the driver runs CUDA {cuda} at most"
    elif sm and (known := nvcc_architectures(path)) and sm not in known:
        names = ", ".join(sorted(known, key=int))
        problem = f"{path}, of CUDA {version}, makes no code for SM {sm} of this GPU, only for {names}"
    return Nvcc(path, version, problem)


def nvcc_architectures(nvcc: Path) -> frozenset[str]:
    """Architectures that the compiler makes code for, such as `87`; none if it does not tell."""
    return frozenset(re.findall(r"\bsm_(\d+)\b", run_tool(str(nvcc), "--list-gpu-code") or ""))


def _versions(paths: Iterable[str]) -> Iterator[tuple[Path, str | None]]:
    for path in paths:
        found = re.search(r"release (\d+\.\d+)", run_tool(path, "--version") or "")
        yield Path(path), found[1] if found else None


def explain_host_compiler() -> str | None:
    """Why there is no C++ compiler for nvcc to call; None if there is one."""
    name = os.environ.get("NVCC_CCBIN") or ("cl" if sys.platform == "win32" else "g++")
    return None if shutil.which(name) else f"{name} is not on PATH"


def _installed_compilers() -> list[str]:
    """All compilers, each once."""
    homes = [str(Path(home) / "bin") for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    installers = [str(path) for pattern in CUDA_FOLDERS for path in sorted(Path("/").glob(pattern.lstrip("/")))]
    found: dict[Path, str] = {}
    for folder in (*os.get_exec_path(), *homes, *installers, *_packaged_toolkits()):
        if path := shutil.which("nvcc", path=folder):
            found.setdefault(Path(path).resolve(), path)
    return list(found.values())


def _packaged_toolkits() -> list[str]:
    """Folders of the compiler that NVIDIA's Python packages bring (nvidia-cuda-nvcc 13 and later)."""
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec is not None else None
    return [str(folder) for root in roots or () for folder in sorted(Path(root).glob("cu*/bin"), reverse=True)]
