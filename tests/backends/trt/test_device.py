"""The driver's calls, against a driver in Python."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
import pytest

from iwp_export.backends.trt import device as trt_device
from iwp_export.backends.trt.device import Device
from iwp_export.backends.trt.runner import Pool
from iwp_export.device import gpu
from iwp_export.device.gpu import Gpu, find_gpu, load_driver
from iwp_export.errors import BackendError


class FakeDriver:
    """Enough of libcuda: memory is host memory; `fail` is the code of the next call of a name."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.fail: dict[str, int] = {}
        self.buffers: dict[int, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append((name, arguments))
            return self.fail.pop(name, 0) or getattr(self, f"do_{name}", lambda *_: 0)(*arguments)

        return call

    def do_cuGetErrorName(self, code: int, name: Any) -> int:  # noqa: N802
        name._obj.value = b"CUDA_ERROR_FAKE"
        return 0

    def do_cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 7}[attribute]
        return 0

    def do_cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 13020
        return 0

    def do_cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = b"Orin"
        return 0

    def do_cuStreamCreate(self, stream: Any, flags: int) -> int:  # noqa: N802
        stream._obj.value = 42
        return 0

    def do_cuMemAlloc_v2(self, address: Any, nbytes: Any) -> int:  # noqa: N802
        if nbytes.value == 0:
            return 1  # CUDA_ERROR_INVALID_VALUE
        buffer = ctypes.create_string_buffer(nbytes.value)
        address._obj.value = ctypes.addressof(buffer)
        self.buffers[ctypes.addressof(buffer)] = buffer
        return 0

    def do_cuMemFree_v2(self, address: Any) -> int:  # noqa: N802
        del self.buffers[address.value]
        return 0

    def do_cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, nbytes: Any, stream: Any) -> int:  # noqa: N802
        assert stream.value == 42
        ctypes.memmove(target.value, source.value, nbytes.value)
        return 0

    do_cuMemcpyDtoHAsync_v2 = do_cuMemcpyDtoDAsync_v2 = do_cuMemcpyHtoDAsync_v2  # noqa: N815


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    monkeypatch.setattr(trt_device, "load_driver", lambda: fake)
    return fake


def test_bytes_go_there_and_back(driver: FakeDriver) -> None:
    device = Device()
    assert (device.gpu, device.stream) == (Gpu("Orin", "87", 13), 42)
    array, found = np.arange(10, dtype=np.float32), np.zeros(10, np.float32)
    one, other = device.allocate(array.nbytes), device.allocate(array.nbytes)
    device.upload(one, array)
    device.copy(other, one, array.nbytes)
    device.download(other, found)
    device.synchronize()
    np.testing.assert_array_equal(found, array)
    device.free(one)
    device.free(other)
    assert not driver.buffers


def test_a_failing_call_is_named_with_the_drivers_word(driver: FakeDriver) -> None:
    device = Device()
    driver.fail["cuStreamSynchronize"] = 700
    with pytest.raises(BackendError, match=r"cuStreamSynchronize gave CUDA_ERROR_FAKE \(700\)"):
        device.synchronize()


def test_a_full_gpu_is_named(driver: FakeDriver) -> None:
    device = Device()
    driver.fail["cuMemAlloc_v2"] = trt_device.OUT_OF_MEMORY
    with pytest.raises(BackendError, match="the GPU has no 2 MiB of memory left"):
        device.allocate(2 << 20)


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LIBRARY", "libcuda-that-is-not-there.so.1")
    assert find_gpu() is None
    with pytest.raises(BackendError, match="no NVIDIA driver is here"):
        load_driver()


def test_an_array_is_held_until_its_upload_is_done(driver: FakeDriver) -> None:
    device = Device()
    array = np.arange(4)
    held = weakref.ref(array)
    device.upload(device.allocate(32), array)
    del array
    assert held() is not None
    device.synchronize()
    assert held() is None


def test_the_driver_is_never_asked_for_no_bytes(driver: FakeDriver) -> None:
    device = Device()
    nothing, other = device.allocate(0), device.allocate(0)
    assert 0 != nothing != other
    device.free(nothing)
    device.free(other)
    assert not driver.buffers


def test_blocks_are_freed_in_the_devices_context_and_a_failure_stops_nothing(driver: FakeDriver) -> None:
    device = Device()
    pool = Pool(device, spare=0)
    blocks = [pool.take(100) for _ in range(3)]
    driver.calls.clear()
    driver.fail["cuMemFree_v2"] = 201
    pool.give(blocks)
    assert [name for name, _ in driver.calls if name != "cuGetErrorName"] == ["cuCtxSetCurrent", *["cuMemFree_v2"] * 3]
    assert len(driver.buffers) == 1  # the one that could not be freed
