"""What a machine has: system, GPUs, memory. Every probe survives a broken install."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TOOL_TIMEOUT = 20
BOARD_FILE = Path("/proc/device-tree/model")
"""Where Linux on ARM boards (Jetson) names the board."""


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


def is_jetson(machine: Mapping[str, Any]) -> bool:
    """Whether a description of a machine is that of a Jetson, whose CUDA and TensorRT come with JetPack."""
    return "jetson" in (machine["board"] or "").lower()


def find_gpus() -> tuple[list[dict[str, str]], str | None]:
    """NVIDIA GPUs, and why there are none."""
    fields = ("name", "compute_cap", "memory.total", "driver_version")
    if shutil.which("nvidia-smi") is None:
        return [], "nvidia-smi is not installed: no NVIDIA driver here"
    output, problem = run_tool(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"])
    rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines()]
    gpus = [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]
    return gpus, None if gpus else f"nvidia-smi finds none{f': {problem}' if problem else ''}"


def run_tool(command: Sequence[str]) -> tuple[str, str]:
    """Output of a program, and its first words on stderr or the reason that it did not run."""
    try:
        done = subprocess.run([*command], capture_output=True, text=True, errors="replace", timeout=TOOL_TIMEOUT)
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
