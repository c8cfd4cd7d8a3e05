"""Device memory through the NVIDIA driver alone, which needs neither torch nor the CUDA toolkit; a pool of blocks."""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from iwp_export.device.gpu import Gpu, check, gpu_of, load_driver
from iwp_export.errors import BackendError

Array = npt.NDArray[Any]

STREAM_NON_BLOCKING = 1
OUT_OF_MEMORY = 2
"""CU_STREAM_NON_BLOCKING and CUDA_ERROR_OUT_OF_MEMORY."""

BLOCK_BYTES = 2 << 20
"""Blocks above this size are multiples of it, so that a growing cache finds a block of the same size again."""
SMALLEST_BLOCK = 256
TOLERATED_EXCESS = 2
"""A free block up to so many times too large is taken rather than a new one made."""


class Device(Protocol):
    """A GPU with one stream, as much of it as a session needs. Addresses are whole numbers."""

    @property
    def stream(self) -> int:
        """The stream that everything is enqueued on (`cudaStream_t`)."""

    def activate(self) -> None:
        """Make the device current in the calling thread."""

    def allocate(self, nbytes: int) -> int:
        """Device memory.

        Raises:
            BackendError: there is too little.
        """

    def free(self, address: int) -> None:
        """Give memory back."""

    def upload(self, address: int, array: Array) -> None:
        """Copy a contiguous array to the device; held until `synchronize`, and not to be changed before."""

    def download(self, address: int, array: Array) -> None:
        """Copy from the device into a contiguous array; complete after `synchronize`."""

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy on the device."""

    def synchronize(self) -> None:
        """Wait for the stream.

        Raises:
            BackendError: something enqueued before failed.
        """


class CudaDevice:
    """The first NVIDIA GPU, in the context that TensorRT and torch use too.

    Raises:
        BackendError: there is no driver or no GPU.
    """

    def __init__(self, index: int = 0) -> None:
        self._driver = load_driver()
        self.gpu: Gpu = gpu_of(self._driver, index)
        device, self._context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), index)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self.activate()
        self._call("cuStreamCreate", ctypes.byref(stream), STREAM_NON_BLOCKING)
        self.stream = int(stream.value or 0)
        self._uploading: list[Array] = []

    def activate(self) -> None:
        """See `Device.activate`."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, nbytes: int) -> int:
        """See `Device.allocate`."""
        address = ctypes.c_uint64()
        code = self._driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(nbytes))
        if code == OUT_OF_MEMORY:
            raise BackendError(
                f"the GPU has no {nbytes / 2**20:.0f} MiB of memory left: close other programs on it, end "
                "conversations, or build the engine with a smaller max_context"
            )
        check(self._driver, code, "cuMemAlloc")
        return address.value

    def free(self, address: int) -> None:
        """See `Device.free`."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, array: Array) -> None:
        """See `Device.upload`."""
        self._uploading.append(array)
        source = ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, *self._sized(array.nbytes))

    def download(self, address: int, array: Array) -> None:
        """See `Device.download`."""
        target = ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), *self._sized(array.nbytes))

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """See `Device.copy`."""
        addresses = ctypes.c_uint64(target), ctypes.c_uint64(source)
        self._call("cuMemcpyDtoDAsync_v2", *addresses, *self._sized(nbytes))

    def synchronize(self) -> None:
        """See `Device.synchronize`."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(self.stream))
        self._uploading.clear()

    def _sized(self, nbytes: int) -> tuple[Any, Any]:
        return ctypes.c_size_t(nbytes), ctypes.c_void_p(self.stream)

    def _call(self, name: str, *arguments: Any) -> None:
        check(self._driver, getattr(self._driver, name)(*arguments), name)


@dataclass(frozen=True)
class Block:
    """Device memory out of a pool."""

    address: int
    nbytes: int


class Pool:
    """Blocks of device memory that go from use to use: allocating one stalls the GPU.

    Args:
        device: where they are.
        spare: how many free blocks are kept.
    """

    def __init__(self, device: Device, spare: int) -> None:
        self._device = device
        self._spare = spare
        self._free: list[Block] = []
        weakref.finalize(self, _free_all, device, self._free)

    def take(self, nbytes: int) -> Block:
        """A block of at least `nbytes`, its content undefined.

        Raises:
            BackendError: the device's memory is full.
        """
        nbytes = _rounded(nbytes)
        fitting = [block for block in self._free if nbytes <= block.nbytes <= TOLERATED_EXCESS * nbytes]
        if fitting:
            block = min(fitting, key=lambda block: block.nbytes)
            self._free.remove(block)
            return block
        try:
            return Block(self._device.allocate(nbytes), nbytes)
        except BackendError:
            if not self._free:
                raise
            _free_all(self._device, self._free)
            return Block(self._device.allocate(nbytes), nbytes)

    def give(self, blocks: list[Block]) -> None:
        """Take blocks back and empty the list; beyond the spare ones the smallest are freed."""
        self._free += blocks
        blocks.clear()
        self._free.sort(key=lambda block: block.nbytes)
        surplus = self._free[: max(0, len(self._free) - self._spare)]
        del self._free[: len(surplus)]
        _free_all(self._device, surplus)

    def lend(self, owner: object, blocks: list[Block]) -> None:
        """Have the blocks that are in the list when `owner` is gone come back then."""
        weakref.finalize(owner, self.give, blocks)


def _rounded(nbytes: int) -> int:
    unit = BLOCK_BYTES if nbytes > BLOCK_BYTES else SMALLEST_BLOCK
    return max(unit, -(-nbytes // unit) * unit)


def _free_all(device: Device, blocks: list[Block]) -> None:
    """Free blocks, in whatever thread drops them; one that cannot be freed is lost, and stops nothing."""
    if blocks:
        with contextlib.suppress(BackendError):
            device.activate()
    while blocks:
        with contextlib.suppress(BackendError):
            device.free(blocks.pop().address)
