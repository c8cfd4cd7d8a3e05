"""Which packages import here, each tried in a process of its own: a broken native library may abort."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

IMPORT_TIMEOUT = 180
"""Seconds for one import: torch takes a minute from a slow SD card."""
NO_ARRAYS = "it does not read arrays of this numpy"
"""What is wrong with bindings of TensorRT that were compiled for another numpy."""

# In a process of its own: a broken native library may abort, and torch need not stay in memory.
PROBE = """
import importlib.metadata, json, sys
name, distribution, no_arrays = sys.argv[1:]
found = {"version": None, "problem": None, "providers": []}
try:
    module = __import__(name)
    found["version"] = str(getattr(module, "__version__", None) or importlib.metadata.version(distribution))
    found["providers"] = list(getattr(module, "get_available_providers", list)())
    if hasattr(module, "PluginField"):
        from iwp_export.device.packages import reads_arrays
        found["problem"] = None if reads_arrays(module) else no_arrays
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


def _import_one(module: str, distribution: str) -> Imported:
    command = [sys.executable, "-W", "ignore", "-c", PROBE, module, distribution, NO_ARRAYS]
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
