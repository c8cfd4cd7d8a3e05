"""`iwp-export doctor`: what this machine can export, build and run, and the command that installs what is missing."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from iwp_export.bundle.schema import to_json
from iwp_export.device.gpu import find_gpus
from iwp_export.device.machine import NO_ARRAYS, Imported, explain_host_compiler, find_nvcc, import_all
from iwp_export.device.meters import find_meters
from iwp_export.device.state import DeviceState, facts, read_state, warnings
from iwp_export.engine.kernels import LIBRARY_VARIABLE, PLUGIN_VARIABLE
from iwp_export.version import __version__
from iwp_export.view.terminal import human_bytes, render
from iwp_export.view.view import Table, View

DESCRIPTION = "Show what this machine can export, build and run, and the command that installs what is missing."
EXAMPLES = """\
  iwp-export doctor           a page for people
  iwp-export doctor --json    the same for programs
"""

EXTRAS = {
    "": ("numpy", "pillow", "psutil", "rich", "tokenizers", "transformers", "jinja2"),
    "[build]": ("onnx", "onnx-ir"),
    "[export]": ("torch", "onnx", "onnx-ir", "onnxscript", "safetensors"),
    "[ort]": ("onnxruntime",),
    "[report]": ("matplotlib",),
    "[gpu]": ("nvidia-ml-py",),
}
"""Extras of this package and the distributions that they bring; the smallest comes first."""
ENGINES = ("tensorrt", "tensorrt-rtx")
MODULES = {"pillow": "PIL", "nvidia-ml-py": "pynvml"}
"""Modules that are not called like their distribution."""
PACKAGES = tuple(dict.fromkeys(name for group in (*EXTRAS.values(), ENGINES) for name in group))

JETPACK = "sudo apt install nvidia-jetpack"
"""On a Jetson, CUDA and TensorRT come from the vendor's metapackage and not from PyPI."""
JETPACK_PYTHON = f"{JETPACK}, and a virtual environment made with --system-site-packages"
NVCC = "pip install 'iwp-export[kernels]'"
OLDEST_PACKAGED_NVCC = 13
"""The first CUDA whose nvcc is on PyPI; an older driver does not run what it makes."""
RTX_MACHINES = ("x86_64", "amd64")
"""Processors for which PyPI has TensorRT-RTX."""


@dataclass(frozen=True)
class Lack:
    """Something that a task needs and this machine lacks, and the command that mends it, where one does."""

    what: str
    why: str
    install: str | None = None


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def execute(args: argparse.Namespace) -> None:
    """Probe the machine and print what was found. Missing things are findings, not errors: the exit code is 0."""
    state = read_state()
    report = examine(state)
    print(json.dumps(report, indent=2) if args.json else render([view(report, state)]))


def examine(state: DeviceState) -> dict[str, Any]:
    """The report as JSON values: `machine`, `gpus`, `nvcc`, `packages`, `can` by task, and others."""
    imported = import_all({name: MODULES.get(name, name.replace("-", "_")) for name in PACKAGES})
    lacks = {name: _package_lack(name, found, state) for name, found in imported.items()}
    gpus, no_gpu = find_gpus()
    cuda = gpus[0].cuda if gpus else None
    nvcc = find_nvcc(cuda, gpus[0].sm if gpus else None)
    install_nvcc = JETPACK if state.is_jetson else _nvcc_package(cuda)
    no_compiler = explain_host_compiler()
    hardware = {
        "GPU": Lack("GPU", no_gpu) if no_gpu else None,
        "nvcc": Lack("nvcc", nvcc.problem, install_nvcc) if nvcc.problem else None,
        "compiler": Lack("C++ compiler", no_compiler, "sudo apt install g++") if no_compiler else None,
    }
    tasks = _tasks(imported["onnxruntime"], {**lacks, **hardware})
    memory = psutil.virtual_memory()
    return {
        "iwp_export": __version__,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "machine": {
            "architecture": platform.machine(),
            "memory_bytes": memory.total,
            "memory_available_bytes": memory.available,
            "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        },
        "gpus": [asdict(gpu) for gpu in gpus],
        "nvcc": nvcc.version,
        "state": to_json(state),
        "meters": {meter.name: f"{meter.scope}, {meter.source}" for meter in find_meters()},
        "warnings": warnings(state),
        "libraries": {name: os.environ.get(name) for name in (LIBRARY_VARIABLE, PLUGIN_VARIABLE)},
        "packages": {
            name: {
                "ok": found.problem is None,
                "version": found.version,
                "problem": found.problem,
                "install": lack.install if (lack := lacks[name]) else None,
            }
            for name, found in imported.items()
        },
        "providers": list(imported["onnxruntime"].providers),
        "can": {task: {"ok": not needs, "missing": [vars(need) for need in needs]} for task, needs in tasks.items()},
    }


def _tasks(ort: Imported, lacks: Mapping[str, Lack | None]) -> dict[str, list[Lack]]:
    """What each task lacks; nothing where it can be done."""
    core, export = EXTRAS[""], (*EXTRAS[""], *EXTRAS["[export]"])
    named = os.environ.get(LIBRARY_VARIABLE) or os.environ.get(PLUGIN_VARIABLE)
    kernels = () if named else ("nvcc", "compiler")  # compiled for the GPU by the first engine that runs
    needs: dict[str, Sequence[str]] = {
        "export bundles": export,
        "calibrate": (*export, "matplotlib"),
        "run bundles on the CPU": (*core, "onnxruntime", "cpu"),
        "run bundles on CUDA": (*core, "onnxruntime", "cuda", "GPU"),
        "build and run TensorRT engines": (*core, *EXTRAS["[build]"], "tensorrt", "GPU", *kernels),
        "build TensorRT-RTX engines": (*core, *EXTRAS["[build]"], "tensorrt-rtx"),
        "run TensorRT-RTX engines": (*core, "tensorrt-rtx", "GPU", *kernels),
        "compile the CUDA kernels": ("nvcc", "compiler"),
    }
    found = {**lacks, **{provider: _provider_lack(provider, ort) for provider in ("cpu", "cuda")}}
    return {task: [lack for name in names if (lack := found[name])] for task, names in needs.items()}


def _package_lack(name: str, found: Imported, state: DeviceState) -> Lack | None:
    if found.problem is None:
        return None
    if found.problem == NO_ARRAYS:
        return Lack(name, f"{found.version}: {found.problem}", "pip install 'numpy<2'")
    if name == "tensorrt-rtx" and platform.machine().lower() not in RTX_MACHINES:
        return Lack(name, f"{found.problem}: there is no package for {platform.machine()}")
    extra = next((extra for extra, group in EXTRAS.items() if name in group), None)
    install = f"pip install {name}" if extra is None else f"pip install 'iwp-export{extra}'"
    if name == "tensorrt" and state.is_jetson:
        install = JETPACK_PYTHON
    elif found.problem != "not installed":
        install = f"pip install --force-reinstall {name}"
    return Lack(name, found.problem, install)


def _provider_lack(provider: str, ort: Imported) -> Lack | None:
    from iwp_export.backends.ort.session import PROVIDERS, how_to_install

    if ort.problem is not None or PROVIDERS[provider] in ort.providers:
        return None  # a missing ONNX Runtime is said once, as a package
    return Lack(PROVIDERS[provider], "this ONNX Runtime was built without it", how_to_install(provider))


def _nvcc_package(cuda: int | None) -> str:
    if cuda is None or cuda >= OLDEST_PACKAGED_NVCC:
        return NVCC
    return f"install NVIDIA's CUDA toolkit {cuda}, which the driver runs, or update the driver"


def view(report: Mapping[str, Any], state: DeviceState) -> View:
    """The report for people."""
    python, machine = report["python"], report["machine"]
    sizes = {key: human_bytes(size) for key, size in machine.items() if key.endswith("_bytes")}
    about = [
        ("iwp-export", f"{report['iwp_export']}, Python {python['version']} ({python['executable']})"),
        ("processor", machine["architecture"]),
        ("memory", f"{sizes['memory_bytes']} ({sizes['memory_available_bytes']} free)"),
        ("disk", f"{sizes['disk_free_bytes']} free here"),
        *(fact for fact in facts(state) if fact[0] != "packages"),
        *((f"power of {name}", value) for name, value in report["meters"].items()),
        ("ONNX Runtime's providers", ", ".join(report["providers"]) or "none"),
        *((name, path) for name, path in report["libraries"].items() if path),
    ]
    packages = [
        (_state(found), name, found["version"] or found["problem"], found["install"])
        for name, found in report["packages"].items()
    ]
    tasks: list[tuple[str, str, str]] = []
    for task, found in report["can"].items():
        first, *others = [*map(_need, found["missing"])] or [""]
        tasks += [("yes" if found["ok"] else "no", task, first), *(("", "", need) for need in others)]
    tables = (
        Table(("", "package", "", "to get it"), packages, "Packages"),
        Table(("", "task", "missing"), tasks, "This machine can"),
    )
    return View("Doctor", [f"warning: {line}" for line in report["warnings"]], about, tables=tables)


def _need(need: Mapping[str, Any]) -> str:
    return f"{need['what']}: {need['why']}" + (f" -> {need['install']}" if need["install"] else "")


def _state(found: Mapping[str, Any]) -> str:
    return "ok" if found["ok"] else "missing" if found["problem"] == "not installed" else "broken"
