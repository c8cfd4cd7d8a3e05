"""The pool of device memory: block sizes, which block is taken, which are freed."""

from __future__ import annotations

import gc

import pytest

from iwp_export.backends.trt.runner import Pool, Reservation, block_bytes, offsets
from iwp_export.errors import BackendError
from tests.backends.trt.fake_trt import FakeDevice


@pytest.mark.parametrize("nbytes", [0, 1, 256, 257, 320, 1000, (1 << 30) - 1, 1 << 30, (1 << 30) + 1])
def test_a_block_is_less_than_a_quarter_too_large(nbytes: int) -> None:
    assert max(nbytes, 256) <= block_bytes(nbytes) < max(1.25 * nbytes, 257)
    assert block_bytes(block_bytes(nbytes)) == block_bytes(nbytes)


def test_sizes_are_few() -> None:
    assert len({block_bytes(nbytes) for nbytes in range(256, 1 << 16)}) == 8 * 4 + 1


def test_a_free_block_of_about_the_size_is_taken() -> None:
    pool = Pool(FakeDevice(), spare=4)
    large, small = pool.take(5000), pool.take(300)
    assert (small.nbytes, large.nbytes) == (320, 5120)
    pool.give([small, large])
    assert pool.take(310) == small
    assert pool.take(1000) != large  # five times too large
    assert pool.take(4000) == large


def test_what_is_outgrown_is_freed_before_its_successor_is_made() -> None:
    device = FakeDevice(capacity=2048 + 2560)
    pool = Pool(device, spare=4)
    held, free = pool.take(2000), pool.take(2000)
    pool.give([free])
    assert pool.take(2500).nbytes == 2560  # which had no room beside both
    assert held.address in device.memory and device.used == 2048 + 2560


def test_pool_frees_the_smallest_beyond_its_spare() -> None:
    device = FakeDevice()
    pool = Pool(device, spare=2)
    pool.give([pool.take(n) for n in (256, 512, 1024)])
    assert sorted(block.nbytes for block in device.memory.values()) == [512, 1024]


def test_a_full_gpu_gives_up_spare_blocks_first() -> None:
    device = FakeDevice(capacity=4096)
    pool = Pool(device, spare=4)
    pool.give([pool.take(1024), pool.take(1024)])
    block = pool.take(4096)
    assert device.used == 4096
    with pytest.raises(BackendError, match="full"):
        pool.take(256)
    pool.give([block])
    assert pool.take(4096) == block


def test_a_reservation_has_its_very_size_and_ends_with_its_owner() -> None:
    device = FakeDevice()
    reservation = Reservation(device, 1001)
    assert device.memory[reservation.address].nbytes == reservation.nbytes == 1001
    del reservation
    gc.collect()
    assert device.used == 0


def test_tensors_of_a_block_are_aligned() -> None:
    assert offsets([1, 256, 257, 0, 5]) == ([0, 256, 512, 1024, 1024], 1280)
