"""Device memory through the NVIDIA driver alone, which needs neither torch nor the CUDA toolkit."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy.typing as npt

from iwp_export.device.gpu import Gpu, check, gpu_of, load_driver
from iwp_export.errors import BackendError

Array = npt.NDArray[Any]

STREAM_NON_BLOCKING = 1
OUT_OF_MEMORY = 2
"""CU_STREAM_NON_BLOCKING and CUDA_ERROR_OUT_OF_MEMORY."""


class Device:
    """The first NVIDIA GPU with one stream, in the context that TensorRT and torch use too.

    `stream` is what everything is enqueued on (`cudaStream_t`). Addresses are whole numbers.

    Raises:
        BackendError: there is no driver or no GPU; of a method, a call of the driver failed.
    """

    def __init__(self) -> None:
        self._driver = load_driver()
        self.gpu: Gpu = gpu_of(self._driver)
        device, self._context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self.activate()
        self._call("cuStreamCreate", ctypes.byref(stream), STREAM_NON_BLOCKING)
        self.stream = int(stream.value or 0)
        self._uploading: list[Array] = []

    def activate(self) -> None:
        """Make the device current in the calling thread."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, nbytes: int) -> int:
        """Device memory, 256-byte aligned; an address of its own also for no bytes.

        Raises:
            BackendError: there is too little.
        """
        address = ctypes.c_uint64()
        size = ctypes.c_size_t(max(nbytes, 1))  # cuMemAlloc refuses 0
        code = self._driver.cuMemAlloc_v2(ctypes.byref(address), size)
        if code == OUT_OF_MEMORY:
            raise BackendError(
                f"the GPU has no {nbytes / 2**20:.0f} MiB of memory left: close other programs on it, end "
                "conversations, or build the engine with a smaller max_context"
            )
        check(self._driver, code, "cuMemAlloc")
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, array: Array) -> None:
        """Copy a contiguous array to the device; held until `synchronize`, and not to be changed before."""
        self._uploading.append(array)
        source = ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, *self._sized(array.nbytes))

    def download(self, address: int, array: Array) -> None:
        """Copy from the device into a contiguous array; complete after `synchronize`."""
        target = ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), *self._sized(array.nbytes))

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy on the device."""
        addresses = ctypes.c_uint64(target), ctypes.c_uint64(source)
        self._call("cuMemcpyDtoDAsync_v2", *addresses, *self._sized(nbytes))

    def synchronize(self) -> None:
        """Wait for the stream; fails if something enqueued before did."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(self.stream))
        self._uploading.clear()

    def _sized(self, nbytes: int) -> tuple[Any, Any]:
        return ctypes.c_size_t(nbytes), ctypes.c_void_p(self.stream)

    def _call(self, name: str, *arguments: Any) -> None:
        check(self._driver, getattr(self._driver, name)(*arguments), name)
