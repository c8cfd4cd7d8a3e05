"""NVIDIA GPUs: which are here, from the driver alone, and questions to its management library (NVML)."""

from __future__ import annotations

import ctypes
import importlib
import sys
from dataclasses import dataclass, field
from typing import Any

import psutil

from iwp_export.device.machine import JETSON
from iwp_export.errors import BackendError

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""
NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: as its driver calls it.
        sm: its compute capability as NVIDIA writes architectures: `87` for 8.7.
        cuda: the major version of CUDA that the driver runs, and with it all earlier ones.
        cuda_version: the whole version, such as `12.6`.
    """

    name: str
    sm: str
    cuda: int
    cuda_version: str = field(default="", compare=False)


def load_driver() -> Any:
    """The driver's library, initialised. It needs neither the CUDA toolkit nor a CUDA package.

    Raises:
        BackendError: there is no driver, or no GPU that it can use.
    """
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise BackendError(f"no NVIDIA driver is here ({error}): this needs a machine with an NVIDIA GPU") from error
    check(driver, driver.cuInit(0), "cuInit")
    return driver


def check(driver: Any, code: int, call: str) -> None:
    """Turn a CUresult into an error.

    Raises:
        BackendError: `code` is not 0.
    """
    if code:
        name = ctypes.c_char_p()
        driver.cuGetErrorName(code, ctypes.byref(name))
        raise BackendError(
            f"the NVIDIA driver failed: {call} gave {(name.value or b'an unknown error').decode()} ({code})"
        )


def gpu_of(driver: Any, index: int = 0) -> Gpu:
    """A GPU by its number.

    Raises:
        BackendError: there is none with this index.
    """
    device, value = ctypes.c_int(), ctypes.c_int()
    check(driver, driver.cuDeviceGet(ctypes.byref(device), index), "cuDeviceGet")
    numbers = []
    for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
        check(driver, driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device), "cuDeviceGetAttribute")
        numbers.append(value.value)
    name = ctypes.create_string_buffer(NAME_BYTES)
    check(driver, driver.cuDeviceGetName(name, NAME_BYTES, device), "cuDeviceGetName")
    check(driver, driver.cuDriverGetVersion(ctypes.byref(value)), "cuDriverGetVersion")
    cuda, minor = divmod(value.value, 1000)
    sm = f"{numbers[0]}{numbers[1]}"
    return Gpu(name.value.decode(errors="replace"), sm, cuda, f"{cuda}.{minor // 10}")


def find_gpus() -> tuple[list[Gpu], str | None]:
    """The GPUs that CUDA programs may use, and why there are none."""
    count = ctypes.c_int()
    try:
        driver = load_driver()
        check(driver, driver.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
        return [gpu_of(driver, index) for index in range(count.value)], None
    except BackendError as error:
        return [], str(error)


def find_gpu() -> Gpu | None:
    """The first GPU, or None where there is no driver or no GPU."""
    return next(iter(find_gpus()[0]), None)


def ask_nvml(call: str, *arguments: Any) -> Any:
    """What a call of NVML gives, by its name in nvidia-ml-py.

    None without that package or a driver, and where a call is not supported, as most are not on a Jetson.
    """
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()  # it counts its callers: cheap once it is started
        return getattr(nvml, call)(*arguments)
    except nvml.NVMLError:
        return None


def gpu_used_bytes() -> int | None:
    """Memory in use on the first GPU by every program; of a Jetson, whose GPU shares the board's memory, all in use.

    None without NVML or a GPU.
    """
    card = ask_nvml("nvmlDeviceGetHandleByIndex", 0)
    memory = None if card is None else ask_nvml("nvmlDeviceGetMemoryInfo", card)
    if memory is not None:
        return int(memory.used)
    shared = psutil.virtual_memory()
    return int(shared.total - shared.available) if JETSON.exists() else None
