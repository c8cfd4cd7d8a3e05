"""The doctor: a complete report whatever is missing or broken."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from iwp_export.cli import doctor
from iwp_export.cli.main import main
from iwp_export.device.gpu import Gpu
from iwp_export.device.machine import NO_ARRAYS, Imported, Nvcc
from iwp_export.device.meters import find_meters
from iwp_export.device.state import DeviceState, read_state
from tests.device.recorded import ORIN_NANO

ABSENT = Imported(None, "not installed")
PLAIN = DeviceState()
ORIN = DeviceState(board="NVIDIA Jetson Orin Nano", l4t="36.4.7")


@pytest.fixture
def fake(monkeypatch):
    """Make the doctor find a complete machine, but for the given imports."""

    def install(gpu=True, state=PLAIN, architecture="x86_64", cuda=13, nvcc=True, **different: Imported) -> None:
        providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
        found = {name: Imported("1.0", None, providers if name == "onnxruntime" else ()) for name in doctor.PACKAGES}
        found |= {name.replace("_", "-"): each for name, each in different.items()}
        gpus = [Gpu("Fake GPU", "89", cuda)] if gpu else []
        monkeypatch.setattr(doctor, "import_all", lambda modules: found)
        monkeypatch.setattr(doctor, "find_gpus", lambda: (gpus, None if gpus else "no driver"))
        there = Nvcc(Path("/nvcc"), f"{cuda}.0") if nvcc else Nvcc(problem="nvcc is not found")
        monkeypatch.setattr(doctor, "find_nvcc", lambda cuda, sm: there)
        monkeypatch.setattr(doctor, "explain_host_compiler", lambda: None)
        monkeypatch.setattr(doctor, "read_state", lambda: state)
        monkeypatch.setattr(platform, "machine", lambda: architecture)
        for name in ("IWP_SELECT_TOKENS", "IWP_TENSORRT_PLUGIN"):
            monkeypatch.delenv(name, raising=False)

    return install


def as_json(capsys) -> dict:
    assert main(["doctor", "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return json.loads(shown.out)


def test_report_of_a_complete_machine(fake, capsys):
    fake()
    report = as_json(capsys)
    assert set(report) == {
        "iwp_export", "python", "machine", "gpus", "nvcc", "libraries", "packages", "providers", "can",
        "state", "meters", "warnings"
    }  # fmt: skip
    assert set(report["packages"]) == set(doctor.PACKAGES)
    for found in report["packages"].values():
        assert found == {"ok": True, "version": "1.0", "problem": None, "install": None}
    assert set(report["can"]) == {
        "export bundles", "calibrate", "run bundles on the CPU", "run bundles on CUDA", "compile the CUDA kernels",
        "build and run TensorRT engines", "build TensorRT-RTX engines", "run TensorRT-RTX engines"
    }  # fmt: skip
    assert all(can == {"ok": True, "missing": []} for can in report["can"].values())
    assert report["machine"]["disk_free_bytes"] > 0 and report["gpus"][0]["name"] == "Fake GPU"


def test_a_missing_package_comes_with_its_command(fake, capsys):
    fake(torch=ABSENT, onnxruntime=ABSENT, matplotlib=ABSENT, nvidia_ml_py=ABSENT)
    report = as_json(capsys)
    lack = {"what": "torch", "why": "not installed", "install": "pip install 'iwp-export[export]'"}
    assert report["packages"]["torch"]["install"] == lack["install"]
    assert report["packages"]["nvidia-ml-py"]["install"] == "pip install 'iwp-export[gpu]'"
    assert report["can"]["export bundles"] == {"ok": False, "missing": [lack]}
    assert [need["what"] for need in report["can"]["calibrate"]["missing"]] == ["torch", "matplotlib"]
    assert report["can"]["run bundles on the CPU"]["missing"][0]["install"] == "pip install 'iwp-export[ort]'"
    assert report["providers"] == []


def test_a_broken_package_shows_the_reason(fake, capsys):
    fake(onnxruntime=Imported(None, "ImportError: libcudart.so.13: cannot open shared object file"))
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "broken" in shown and "libcudart.so.13" in shown
    assert "pip install --force-reinstall onnxruntime" in shown


def test_onnxruntime_without_cuda(fake, capsys):
    fake(onnxruntime=Imported("1.0", None, ("CPUExecutionProvider",)))
    report = as_json(capsys)
    assert report["can"]["run bundles on the CPU"]["ok"]
    (lack,) = report["can"]["run bundles on CUDA"]["missing"]
    assert lack["what"] == "CUDAExecutionProvider" and "ort-gpu" in lack["install"]


def test_no_gpu(fake, capsys):
    fake(gpu=False)
    (lack,) = as_json(capsys)["can"]["run bundles on CUDA"]["missing"]
    assert lack == {"what": "GPU", "why": "no driver", "install": None}


def test_a_jetson_has_jetpack(fake, capsys):
    fake(state=ORIN, architecture="aarch64", cuda=12, nvcc=False, tensorrt=ABSENT, tensorrt_rtx=ABSENT)
    report = as_json(capsys)
    assert report["packages"]["tensorrt"]["install"] == doctor.JETPACK_PYTHON
    (lack,) = report["can"]["build TensorRT-RTX engines"]["missing"]
    assert lack == {"what": "tensorrt-rtx", "why": "not installed: there is no package for aarch64", "install": None}
    assert [lack["install"] for lack in report["can"]["compile the CUDA kernels"]["missing"]] == [doctor.JETPACK]
    advised = {lack["install"] for can in report["can"].values() for lack in can["missing"]}
    assert advised == {doctor.JETPACK, doctor.JETPACK_PYTHON, None}  # nothing of it from PyPI


def test_building_needs_no_torch(fake, capsys):
    fake(torch=ABSENT, onnxscript=ABSENT, safetensors=ABSENT, onnx=ABSENT)
    can = as_json(capsys)["can"]
    for task in ("build and run TensorRT engines", "build TensorRT-RTX engines"):
        (lack,) = can[task]["missing"]
        assert (lack["what"], lack["install"]) == ("onnx", "pip install 'iwp-export[build]'")


def test_bindings_that_misread_arrays_ask_for_another_numpy(fake, capsys):
    fake(tensorrt=Imported("10.3.0", NO_ARRAYS))
    (lack,) = as_json(capsys)["can"]["build and run TensorRT engines"]["missing"]
    why = "10.3.0: it does not read arrays of this numpy"
    assert lack == {"what": "tensorrt", "why": why, "install": "pip install 'numpy<2'"}


def test_nvcc_is_for_the_driver(fake, capsys):
    fake(cuda=12, nvcc=False)
    (lack,) = as_json(capsys)["can"]["compile the CUDA kernels"]["missing"]
    assert lack["install"].startswith("install NVIDIA's CUDA toolkit 12, which the driver runs")


def test_engines_run_where_kernels_can_be_compiled_or_are_named(fake, capsys, monkeypatch):
    fake(nvcc=False)
    can = as_json(capsys)["can"]
    for task in ("build and run TensorRT engines", "run TensorRT-RTX engines", "compile the CUDA kernels"):
        assert [lack["install"] for lack in can[task]["missing"]] == ["pip install 'iwp-export[kernels]'"]
    assert can["build TensorRT-RTX engines"]["ok"]
    monkeypatch.setenv("IWP_TENSORRT_PLUGIN", "/opt/libiwp_plugin.so")
    report = as_json(capsys)
    assert report["can"]["run TensorRT-RTX engines"]["ok"]
    assert not report["can"]["compile the CUDA kernels"]["ok"]
    assert report["libraries"] == {"IWP_SELECT_TOKENS": None, "IWP_TENSORRT_PLUGIN": "/opt/libiwp_plugin.so"}
    assert main(["doctor"]) == 0
    assert "/opt/libiwp_plugin.so" in capsys.readouterr().out


def test_clocks_and_power(fake, monkeypatch, capsys, tmp_path: Path):
    root = ORIN_NANO.write(tmp_path, monkeypatch)
    fake(state=read_state(root))
    monkeypatch.setattr(doctor, "find_meters", lambda: find_meters(root))
    found = as_json(capsys)
    assert found["state"]["power_mode"] == "25W" and len(found["warnings"]) == 1
    assert main(["doctor"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "power mode 25W",
        "GPU clock 306 MHz, not locked, 306 to 918 MHz",
        "power of VDD_IN module, INA3221",
        "warning: clocks are not locked",
    ):
        assert part in text
