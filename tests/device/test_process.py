"""Memory of a process from recorded files, and of a GPU from a fake driver."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

from iwp_export.device import process


def test_recorded_status(tmp_path):
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n")
    assert process.resident_bytes(tmp_path) == 1 << 20
    assert process.peak_bytes(tmp_path) == 2 << 20
    assert process.reset_peak(tmp_path) and (tmp_path / "clear_refs").read_text() == "5"


@pytest.mark.parametrize("status", [None, "Name:\tpython\n", "VmRSS:\tmuch\nVmHWM:\n"])
def test_systems_that_do_not_tell(tmp_path, status):
    if status is not None:
        (tmp_path / "status").write_text(status)
    assert process.resident_bytes(tmp_path) is None and process.peak_bytes(tmp_path) is None
    assert not process.reset_peak(tmp_path / "nowhere")


def test_this_process():
    reset, before = process.reset_peak(), process.peak_bytes()
    if before is None or not reset:
        pytest.skip("this system does not tell")
    assert np.ones(8 << 20).sum() > 0  # 64 MiB
    assert (process.peak_bytes() or 0) >= before + (48 << 20)


def driver(free: int, total: int, code: int = 0):
    calls: list[str] = []

    def named(name):
        def call(*arguments):
            calls.append(name)
            if name == "cuMemGetInfo_v2":
                for target, value in zip(arguments, (free, total), strict=True):
                    ctypes.cast(target, ctypes.POINTER(ctypes.c_size_t))[0] = value
                return code
            return 0

        return call

    names = (
        "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuMemGetInfo_v2",
        "cuDevicePrimaryCtxRelease_v2", "cuGetErrorName",
    )  # fmt: skip
    return SimpleNamespace(**{name: named(name) for name in names}), calls


def test_memory_in_use_on_a_gpu():
    fake, calls = driver(3 << 30, 8 << 30)
    assert process.gpu_used_bytes(fake) == 5 << 30
    assert calls[-1] == "cuDevicePrimaryCtxRelease_v2"
    fake, calls = driver(0, 0, code=1)
    assert process.gpu_used_bytes(fake) is None
    assert calls[-1] == "cuDevicePrimaryCtxRelease_v2"
