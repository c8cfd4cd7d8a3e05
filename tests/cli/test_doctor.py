"""The doctor: a complete report whatever is missing or broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from iwp_export.cli import doctor
from iwp_export.cli.main import main
from iwp_export.device import machine, packages, toolchain
from iwp_export.device.gpu import Gpu
from iwp_export.device.packages import Imported
from iwp_export.device.power import find_meters
from iwp_export.device.state import read_state
from tests.device.recorded import ORIN_NANO

EVERYTHING = [*doctor.CORE, *doctor.EXPORT, *doctor.REPORT, *doctor.ORT, *doctor.ENGINES]
TASKS = {
    "export bundles",
    "calibrate",
    "run bundles on the CPU",
    "run bundles on CUDA",
    "build and run TensorRT engines",
    "build TensorRT-RTX engines",
    "run TensorRT-RTX engines",
    "compile the CUDA kernels",
}


@pytest.fixture
def fake(monkeypatch):
    """Make the doctor find a complete machine, but for the given imports."""

    def install(
        gpus=({"name": "Fake GPU"},), board=None, architecture="x86_64", cuda=13, nvcc=True, **different: Imported
    ) -> None:
        providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
        found = {name: Imported("1.0", None, providers if name == "onnxruntime" else ()) for name in EVERYTHING}
        real = machine.describe_machine()
        monkeypatch.setattr(doctor, "import_all", lambda modules: {**found, **different})
        monkeypatch.setattr(doctor, "find_gpus", lambda: (list(gpus), None if gpus else "no driver"))
        monkeypatch.setattr(doctor, "find_gpu", lambda: Gpu("Fake GPU", "89", cuda))
        monkeypatch.setattr(doctor, "explain_nvcc", lambda cuda: (f"{cuda}.0", None) if nvcc else (None, "not on PATH"))
        monkeypatch.setattr(doctor, "find_host_compiler", lambda: ("/usr/bin/g++", None))
        for name in ("IWP_SELECT_TOKENS", "IWP_TENSORRT_PLUGIN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(doctor, "describe_machine", lambda: {**real, "board": board, "architecture": architecture})

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
    assert set(report["packages"]) == set(EVERYTHING)
    for found in report["packages"].values():
        assert found == {"ok": True, "version": "1.0", "problem": None, "install": None}
    assert set(report["can"]) == TASKS
    assert report["can"]["export bundles"] == {"ok": True, "missing": []}
    assert report["can"]["run bundles on CUDA"]["ok"]
    assert report["machine"]["disk_free_bytes"] > 0


def test_a_missing_package_comes_with_its_command(fake, capsys):
    fake(torch=Imported(None, "not installed"), onnxruntime=Imported(None, "not installed"))
    report = as_json(capsys)
    assert report["packages"]["torch"]["install"] == "pip install 'iwp-export[export]'"
    assert report["can"]["export bundles"] == {
        "ok": False,
        "missing": [{"what": "torch", "why": "not installed", "install": "pip install 'iwp-export[export]'"}],
    }
    assert report["can"]["run bundles on the CPU"]["missing"][0]["install"] == "pip install 'iwp-export[ort]'"
    assert report["providers"] == []


def test_calibrating_needs_what_an_export_needs_and_matplotlib(fake, capsys):
    fake(matplotlib=Imported(None, "not installed"))
    report = as_json(capsys)
    lack = {"what": "matplotlib", "why": "not installed", "install": "pip install 'iwp-export[report]'"}
    assert report["can"]["calibrate"] == {"ok": False, "missing": [lack]}
    assert report["can"]["export bundles"]["ok"]
    fake(torch=Imported(None, "not installed"))
    assert [need["what"] for need in as_json(capsys)["can"]["calibrate"]["missing"]] == ["torch"]


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
    fake(gpus=())
    (lack,) = as_json(capsys)["can"]["run bundles on CUDA"]["missing"]
    assert lack == {"what": "GPU", "why": "no driver", "install": None}


ABSENT = Imported(None, "not installed")


def test_a_jetson_has_a_gpu_and_jetpack(fake, capsys):
    board = "NVIDIA Jetson Orin Nano"
    fake(gpus=(), board=board, architecture="aarch64", cuda=12, nvcc=False, tensorrt=ABSENT, tensorrt_rtx=ABSENT)
    report = as_json(capsys)
    assert report["gpus"] == [{"name": board}]
    assert report["packages"]["tensorrt"]["install"] == doctor.JETPACK_PYTHON
    assert report["packages"]["tensorrt_rtx"]["install"] is None
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
    fake(tensorrt=Imported("10.3.0", packages.NO_ARRAYS))
    report = as_json(capsys)
    (lack,) = report["can"]["build and run TensorRT engines"]["missing"]
    assert lack == {
        "what": "tensorrt",
        "why": "10.3.0: it does not read arrays of this numpy",
        "install": "pip install 'numpy<2'",
    }


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


def test_a_missing_host_compiler_is_named(monkeypatch):
    monkeypatch.setenv("NVCC_CCBIN", "no-such-compiler")
    assert toolchain.find_host_compiler() == (None, "no-such-compiler is not on PATH")


def test_imports_are_tried_for_real(monkeypatch, tmp_path: Path):
    (tmp_path / "fine.py").write_text("__version__ = '2.0'\nprint('chatter')")
    (tmp_path / "broken.py").write_text("import nothing_like_this")
    (tmp_path / "aborts.py").write_text("import os; os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = packages.import_all({name: name for name in ("fine", "broken", "aborts", "absent")})
    assert found["fine"] == Imported("2.0", None)
    assert found["broken"].problem == "ModuleNotFoundError: No module named 'nothing_like_this'"
    assert "exit code 3" in str(found["aborts"].problem)
    assert found["absent"].problem == "not installed"


def test_bindings_are_tried_with_an_array(monkeypatch, tmp_path: Path):
    """Those compiled before numpy 2 see strides of 0 in its arrays: the first value comes again and again."""
    field = "class PluginField:\n    def __init__(self, name, data, type): self.data = {}\n"
    rest = "__version__ = '10.3.0'\nclass PluginFieldType: INT8 = 0\n"
    (tmp_path / "reads.py").write_text(field.format("data") + rest)
    (tmp_path / "misreads.py").write_text(field.format("[data[0]] * len(data)") + rest)
    (tmp_path / "raises.py").write_text(field.format("1 / 0") + rest)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    found = packages.import_all({name: name for name in ("reads", "misreads", "raises")})
    assert found == {
        "reads": Imported("10.3.0", None),
        "misreads": Imported("10.3.0", packages.NO_ARRAYS),
        "raises": Imported("10.3.0", packages.NO_ARRAYS),
    }


def test_an_import_that_hangs(monkeypatch, tmp_path: Path):
    (tmp_path / "hangs.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(packages, "IMPORT_TIMEOUT", 1)
    assert "did not end" in str(packages.import_all({"hangs": "hangs"})["hangs"].problem)


def test_tools_that_fail(monkeypatch):
    def run(command, **options):
        return subprocess.CompletedProcess(command, 9, "", "NVIDIA-SMI has failed\nsecond line")

    monkeypatch.setattr(shutil, "which", lambda *args, **options: "/bin/tool")
    monkeypatch.setattr(subprocess, "run", run)
    assert machine.find_gpus() == ([], "nvidia-smi finds none: NVIDIA-SMI has failed")
    assert toolchain.explain_nvcc() == (None, "/bin/tool does not tell its version")


def test_gpu_fields(monkeypatch):
    def run(command, **options):
        return subprocess.CompletedProcess(command, 0, "NVIDIA H200, 9.0, 143771 MiB, 580.1\n", "")

    monkeypatch.setattr(shutil, "which", lambda *args, **options: "/bin/tool")
    monkeypatch.setattr(subprocess, "run", run)
    (gpu,), problem = machine.find_gpus()
    assert problem is None and gpu["name"] == "NVIDIA H200" and gpu["compute_cap"] == "9.0"


def test_clocks_and_power(fake, monkeypatch, capsys, tmp_path) -> None:
    fake()
    probe = ORIN_NANO.probe(tmp_path)
    monkeypatch.setattr(doctor, "read_state", lambda: read_state(probe))
    monkeypatch.setattr(doctor, "find_meters", lambda: find_meters(probe))
    found = as_json(capsys)
    assert found["state"]["power_mode"] == "25W" and len(found["warnings"]) == 1
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for line in (
        "power mode               25W",
        "GPU clock                306 MHz, not locked, 306 to 918 MHz",
        "power of VDD_IN          module, INA3221",
        "warning                  clocks are not locked",
    ):
        assert line in text
