"""Memory of this process, and what is in use on the GPU."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from iwp_export.device.gpu import check, load_driver
from iwp_export.errors import BackendError

PROC = Path("/proc/self")
RESET_PEAK = "5"
"""What clear_refs takes to set the high-water mark back to what is resident now (proc(5))."""


def resident_bytes(folder: Path = PROC) -> int | None:
    """Memory of this process that is in RAM, mapped files included; None where the system does not tell."""
    return _status(folder, "VmRSS")


def peak_bytes(folder: Path = PROC) -> int | None:
    """The most that `resident_bytes` was since `reset_peak`; None where the system does not tell."""
    return _status(folder, "VmHWM")


def reset_peak(folder: Path = PROC) -> bool:
    """Begin to watch for a new peak; False where the system does not let it."""
    try:
        (folder / "clear_refs").write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def gpu_used_bytes(driver: Any = None) -> int | None:
    """Memory in use on the first GPU, by every program; None without a driver or a GPU."""
    free, total, context = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p()
    device = ctypes.c_int()
    try:
        driver = driver or load_driver()
        check(driver, driver.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
        check(driver, driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
        try:
            check(driver, driver.cuCtxSetCurrent(context), "cuCtxSetCurrent")
            check(driver, driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "cuMemGetInfo")
        finally:
            driver.cuDevicePrimaryCtxRelease_v2(device)
    except BackendError:
        return None
    return total.value - free.value


def _status(folder: Path, name: str) -> int | None:
    try:
        lines = (folder / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
