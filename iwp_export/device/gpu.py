"""The NVIDIA driver over ctypes: which GPU is here. Needs neither the CUDA toolkit nor a CUDA package."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

from iwp_export.errors import BackendError

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""
NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """A GPU; `sm` is its compute capability as NVIDIA writes architectures: `87` for 8.7.

    `cuda` is the major version of CUDA that its driver runs, and with it all earlier ones.
    """

    name: str
    sm: str
    cuda: int


def load_driver() -> Any:
    """The driver's library, initialised.

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
    return Gpu(name.value.decode(errors="replace"), f"{numbers[0]}{numbers[1]}", value.value // 1000)


def find_gpu() -> Gpu | None:
    """The first GPU, or None where there is no driver or no GPU."""
    try:
        return gpu_of(load_driver())
    except BackendError:
        return None
