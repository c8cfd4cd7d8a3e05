"""Blocks of device memory that go from use to use: allocating one stalls the GPU."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Collection
from dataclasses import dataclass

from iwp_export.backends.trt.device import Device
from iwp_export.errors import BackendError

ALIGNMENT = 256
"""Bytes to which TensorRT wants addresses aligned, and the smallest block."""
SIZES_PER_DOUBLING = 4
"""Block sizes are 4, 5, 6 and 7 quarters of a power of two: a block is less than a quarter larger than what it holds,
and a cache that doubles token by token goes through four sizes."""
TOLERATED_EXCESS = 2
"""A free block up to so many times too large is taken rather than a new one made."""


@dataclass(frozen=True)
class Block:
    """Device memory out of a pool."""

    address: int
    nbytes: int


class Pool:
    """Free blocks of a device.

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
        nbytes = block_bytes(nbytes)
        fitting = [block for block in self._free if nbytes <= block.nbytes <= TOLERATED_EXCESS * nbytes]
        if fitting:
            block = min(fitting, key=lambda block: block.nbytes)
            self._free.remove(block)
            return block
        # What grew out of a block will not come back to it: smaller ones go first.
        self._drop([block for block in self._free if block.nbytes < nbytes])
        try:
            return Block(self._device.allocate(nbytes), nbytes)
        except BackendError:
            if not self._free:
                raise
            self._drop(list(self._free))
            return Block(self._device.allocate(nbytes), nbytes)

    def give(self, blocks: list[Block]) -> None:
        """Take blocks back and empty the list; beyond the spare ones the smallest are freed."""
        self._free += blocks
        blocks.clear()
        self._free.sort(key=lambda block: block.nbytes)
        self._drop(self._free[: max(0, len(self._free) - self._spare)])

    def lend(self, owner: object, blocks: list[Block]) -> None:
        """Have the blocks that are in the list when `owner` is gone come back then."""
        weakref.finalize(owner, self.give, blocks)

    def _drop(self, blocks: list[Block]) -> None:
        for block in blocks:
            self._free.remove(block)
        _free_all(self._device, blocks)


class Reservation:
    """Device memory of a fixed size for as long as this object lives.

    Args:
        device: where it is.
        nbytes: its size.

    Raises:
        BackendError: the device's memory is full.
    """

    def __init__(self, device: Device, nbytes: int) -> None:
        self.nbytes = nbytes
        self.address = device.allocate(nbytes)
        weakref.finalize(self, _free_all, device, [Block(self.address, nbytes)])


def block_bytes(nbytes: int) -> int:
    """The size of the block that holds `nbytes`: up to a quarter more."""
    nbytes = max(nbytes, ALIGNMENT)
    step = (1 << (nbytes.bit_length() - 1)) // SIZES_PER_DOUBLING
    return -(-nbytes // step) * step


def offsets(sizes: Collection[int]) -> tuple[list[int], int]:
    """Where tensors begin that lie aligned in one block, and the block's size."""
    starts, end = [], 0
    for nbytes in sizes:
        starts.append(end)
        end += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return starts, end


def _free_all(device: Device, blocks: list[Block]) -> None:
    """Free blocks, in whatever thread drops them; one that cannot be freed is lost, and stops nothing."""
    if blocks:
        with contextlib.suppress(BackendError):
            device.activate()
    while blocks:
        with contextlib.suppress(BackendError):
            device.free(blocks.pop().address)
