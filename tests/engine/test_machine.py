"""What the engine's modules know of a machine: versions, libraries, memory, progress."""

from __future__ import annotations

import ctypes.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iwp_export.device import machine
from iwp_export.device.machine import available_bytes, low_memory
from iwp_export.engine import flavour as flavour_module
from iwp_export.engine.flavour import (
    RTX,
    TENSORRT_10_3,
    TENSORRT_10_14,
    TENSORRT_10_15,
    Flavour,
    Target,
    load_flavour,
    target_for,
)
from iwp_export.engine.kernels import NoKernels, SelectionAddresses, SelectionOptions, SelectionShape, SharedKernels
from iwp_export.engine.log import first_error, make_monitor, make_printing_logger, ran_out_of_memory
from iwp_export.engine.network import make_builder
from iwp_export.errors import BackendError

SHAPE = SelectionShape(1, 8, 600, 128, 200, "float16")
OPTIONS = SelectionOptions(2, 2, 5.0, "dual_weight", "none", "mmr")


@pytest.mark.parametrize(
    ("flavour", "version", "target"),
    [
        ("rtx", "1.7.1.116", RTX),
        ("tensorrt", "10.3.0.30", TENSORRT_10_3),  # JetPack 6
        ("tensorrt", "10.13.3.9", TENSORRT_10_3),  # JetPack 7.0
        ("tensorrt", "10.14.1", TENSORRT_10_14),
        ("tensorrt", "10.15.0", TENSORRT_10_15),
        ("tensorrt", "10.16.0", TENSORRT_10_15),  # JetPack 7.2
        ("tensorrt", "11.1.0.106", TENSORRT_10_15),
    ],
)
def test_target_of_a_version(flavour: Any, version: str, target: Target) -> None:
    assert target_for(flavour, version) is target


@pytest.mark.parametrize(("flavour", "version"), [("tensorrt", "8.6.1"), ("rtx", "1.0.0")])
def test_old_versions_are_refused(flavour: Any, version: str) -> None:
    with pytest.raises(BackendError, match=f"{version} is too old"):
        target_for(flavour, version)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavour_module, "is_installed", lambda name: False)
    with pytest.raises(
        BackendError, match=r"TensorRT-RTX is not installed\. To get it: pip install 'iwp-export\[rtx\]'"
    ):
        load_flavour.__wrapped__("rtx")
    with pytest.raises(BackendError, match="it comes with JetPack"):
        load_flavour.__wrapped__("tensorrt")


def test_a_broken_install_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavour_module, "is_installed", lambda name: True)
    monkeypatch.setitem(flavour_module.MODULES, "tensorrt", "no_such_tensorrt_module")
    with pytest.raises(BackendError, match=r"TensorRT does not load \(No module named"):
        load_flavour.__wrapped__("tensorrt")


def test_bindings_that_misread_arrays_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    misread = SimpleNamespace(
        __version__="10.3.0",
        PluginField=lambda name, data, type: SimpleNamespace(data=[data[0]] * len(data)),
        PluginFieldType=SimpleNamespace(INT8=0),
    )
    monkeypatch.setattr(flavour_module, "is_installed", lambda name: True)
    monkeypatch.setitem(sys.modules, "tensorrt", misread)  # type: ignore[misc]
    with pytest.raises(BackendError, match=r"TensorRT 10\.3\.0 does not read arrays of numpy .*pip install 'numpy<2'"):
        load_flavour.__wrapped__("tensorrt")


def test_rtx_imported_by_others_first_is_refused_not_aborted(rtx: Flavour) -> None:
    """The wheel alone cannot import plugins: its parser would abort the process."""
    code = "import tensorrt_rtx; from iwp_export.engine.flavour import load_flavour; load_flavour('rtx')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "was imported before iwp_export could prepare it" in done.stderr


def test_a_library_of_something_else_is_refused() -> None:
    with pytest.raises(BackendError, match="is no usable library of the pruning kernels"):
        SharedKernels(Path(ctypes.util.find_library("c") or "libc.so.6"))


def test_the_stand_in_refuses_to_run() -> None:
    with pytest.raises(BackendError, match="the pruning kernels are not loaded"):
        NoKernels().enqueue(SHAPE, OPTIONS, SelectionAddresses(*range(6)), 0, 0)


def test_scratch_memory_covers_shorter_prompts() -> None:
    longest, with_matrix = (NoKernels().workspace_bytes(replace(SHAPE, tokens=n), OPTIONS) for n in (8000, 4096))
    assert longest == with_matrix > 4096**2 * 4  # beyond 4,096 tokens there is no matrix of pairs


def test_memory_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (available_bytes() or 1) > 0
    with low_memory() as low:
        assert not low.is_set()
    monkeypatch.setattr(machine, "available_bytes", lambda: 1 << 20)
    with low_memory() as low:
        assert low.wait(2)


def test_logs_tell_of_memory() -> None:
    assert ran_out_of_memory(SimpleNamespace(errors=["[x] Error Code 2: OutOfMemory (Requested 5 GiB)"], warnings=[]))
    assert not ran_out_of_memory(SimpleNamespace(errors=["Error Code 4"], warnings=[]))
    assert "IWP_EXPORT_DEBUG" in first_error(SimpleNamespace(errors=[]))


def test_the_printing_logger_is_tensorrts_own(rtx: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IWP_EXPORT_DEBUG", raising=False)
    logger = make_printing_logger(rtx.trt)
    assert type(logger) is rtx.trt.Logger and logger.min_severity == rtx.trt.Logger.ERROR
    assert first_error(logger) == "its log is above"
    monkeypatch.setenv("IWP_EXPORT_DEBUG", "1")
    assert make_printing_logger(rtx.trt).min_severity == rtx.trt.Logger.INFO


def test_a_builder_that_cannot_be_made_is_one_line() -> None:
    def refuse(logger: object) -> object:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    flavour = Flavour("tensorrt", "10.3.0", SimpleNamespace(Builder=refuse))
    logger = SimpleNamespace(errors=["CUDA initialization failure with error: 35"])
    with pytest.raises(BackendError, match=r"TensorRT 10\.3\.0 gives no builder: CUDA initialization failure"):
        make_builder(flavour, logger)


class Base:
    """Stands in for `trt.IProgressMonitor`."""

    def __init__(self) -> None:
        pass


def test_progress_adds_up_to_one() -> None:
    shares: list[float] = []
    monitor = make_monitor(SimpleNamespace(IProgressMonitor=Base), shares.append, lambda: False)
    monitor.phase_start("build", None, 2)
    monitor.phase_start("part", "build", 4)
    assert all(monitor.step_complete("part", step) for step in range(4))
    monitor.phase_finish("part")
    assert sum(shares) == pytest.approx(0.5)
    for step in range(2):
        monitor.step_complete("build", step)
    assert sum(shares) == pytest.approx(1)


def test_a_build_can_be_stopped() -> None:
    stop: list[int] = []
    monitor = make_monitor(SimpleNamespace(IProgressMonitor=Base), lambda share: None, lambda: bool(stop))
    monitor.phase_start("build", None, 2)
    assert monitor.step_complete("build", 0)
    stop.append(1)
    assert not monitor.step_complete("build", 1)


def test_ctrl_c_stops_a_build_without_an_exception_in_tensorrt() -> None:
    def interrupt(share: float) -> None:
        raise KeyboardInterrupt

    monitor = make_monitor(SimpleNamespace(IProgressMonitor=Base), interrupt, lambda: False)
    monitor.phase_start("build", None, 2)
    assert not monitor.step_complete("build", 0)
    assert monitor.interrupted
