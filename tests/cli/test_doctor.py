"""The doctor: a complete report whatever is missing or broken."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from iwp_export.cli import doctor
from iwp_export.cli.main import main
from iwp_export.device import machine, packages, toolchain
from iwp_export.device.packages import Imported

EVERYTHING = [*doctor.CORE, *doctor.EXPORT, *doctor.ORT, *doctor.ENGINES]
TASKS = {
    "export bundles",
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

    def install(gpus=({"name": "Fake GPU"},), board=None, nvcc=True, **different: Imported) -> None:
        providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
        found = {name: Imported("1.0", None, providers if name == "onnxruntime" else ()) for name in EVERYTHING}
        real = machine.describe_machine()
        monkeypatch.setattr(doctor, "import_all", lambda modules: {**found, **different})
        monkeypatch.setattr(doctor, "find_gpus", lambda: (list(gpus), None if gpus else "no driver"))
        monkeypatch.setattr(doctor, "explain_nvcc", lambda: ("13.0", None) if nvcc else (None, "not on PATH"))
        monkeypatch.setattr(doctor, "find_host_compiler", lambda: ("/usr/bin/g++", None))
        for name in ("IWP_SELECT_TOKENS", "IWP_TENSORRT_PLUGIN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(doctor, "describe_machine", lambda: {**real, "board": board})

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
        "iwp_export", "python", "machine", "gpus", "nvcc", "libraries", "packages", "providers", "can"
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


def test_a_jetson_has_a_gpu_and_jetpack(fake, capsys):
    fake(gpus=(), board="NVIDIA Jetson Orin Nano", tensorrt=Imported(None, "not installed"))
    report = as_json(capsys)
    assert report["gpus"] == [{"name": "NVIDIA Jetson Orin Nano"}]
    assert report["packages"]["tensorrt"]["install"] == doctor.JETPACK


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
