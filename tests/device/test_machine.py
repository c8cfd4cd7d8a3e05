"""Memory of this machine and process, and imports that are tried."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from iwp_export.device import gpu, machine
from iwp_export.device.machine import Imported, available_bytes, import_all, peak_bytes, reset_peak
from tests.device.recorded import nvml


def test_a_container_has_its_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    whole = psutil.virtual_memory().available
    assert available_bytes() == pytest.approx(whole + psutil.swap_memory().free, rel=0.1)
    for name, text in {"max": "3000", "current": "2000", "stat": "anon 1500\nfile 400\nfile_mapped 9\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert available_bytes() == 1400  # files that are cached can be dropped
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes() > 3000


def test_recorded_status(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n")
    assert peak_bytes(tmp_path) == 2 << 20
    assert reset_peak(tmp_path) and (tmp_path / "clear_refs").read_text() == "5"
    assert peak_bytes(tmp_path / "nowhere") is None and not reset_peak(tmp_path / "nowhere")


def test_this_process() -> None:
    reset, before = reset_peak(), peak_bytes()
    if before is None or not reset:
        pytest.skip("this system does not tell")
    assert np.ones(8 << 20).sum() > 0  # 64 MiB
    assert (peak_bytes() or 0) >= before + (48 << 20)


def test_memory_in_use_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "JETSON", tmp_path / "nv_tegra_release")
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    assert gpu.gpu_used_bytes() == 5 << 30
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlDeviceGetMemoryInfo=None))
    assert gpu.gpu_used_bytes() is None
    (tmp_path / "nv_tegra_release").touch()  # a Jetson's GPU has the board's memory
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=8, available=3))
    assert gpu.gpu_used_bytes() == 5


def test_imports_are_tried_for_real(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "fine.py").write_text("__version__ = '2.0'\nprint('chatter')")
    (tmp_path / "broken.py").write_text("import nothing_like_this")
    (tmp_path / "aborts.py").write_text("import os; os._exit(3)")
    # Bindings compiled before numpy 2 see strides of 0 in its arrays: the first value comes again and again.
    field = "class PluginField:\n    def __init__(self, name, data, type): self.data = {}\n"
    rest = "__version__ = '10.3.0'\nclass PluginFieldType: INT8 = 0\n"
    (tmp_path / "reads.py").write_text(field.format("data") + rest)
    (tmp_path / "misreads.py").write_text(field.format("[data[0]] * len(data)") + rest)
    (tmp_path / "raises.py").write_text(field.format("1 / 0") + rest)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    names = ("fine", "broken", "aborts", "absent", "reads", "misreads", "raises")
    assert import_all({name: name for name in names}) == {
        "fine": Imported("2.0", None, []),
        "broken": Imported(None, "ModuleNotFoundError: No module named 'nothing_like_this'"),
        "aborts": Imported(None, "its import ended the process with exit code 3"),
        "absent": Imported(None, "not installed"),
        "reads": Imported("10.3.0", None, []),
        "misreads": Imported("10.3.0", machine.NO_ARRAYS, []),
        "raises": Imported("10.3.0", machine.NO_ARRAYS, []),
    }


def test_an_import_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(machine, "IMPORT_TIMEOUT", 1)
    assert "did not end" in str(import_all({"hangs": "hangs"})["hangs"].problem)


def test_tools_that_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvcc"
    tool.write_text("#!/bin/sh\necho no >&2; exit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(tool))
    monkeypatch.setenv("NVCC_CCBIN", "no-such-compiler")
    assert machine.find_nvcc() == machine.Nvcc(tool, None, f"{tool} does not tell its version")
    assert machine.explain_host_compiler() == "no-such-compiler is not on PATH"
