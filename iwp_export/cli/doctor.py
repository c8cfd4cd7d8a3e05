"""`iwp-export doctor`: what this machine can export, build and run, and the command that installs what is missing."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iwp_export.backends.ort.session import PROVIDERS, how_to_install
from iwp_export.bundle.schema import from_json, to_json
from iwp_export.device.gpu import find_gpu
from iwp_export.device.machine import describe_machine, find_gpus, is_jetson
from iwp_export.device.packages import NO_ARRAYS, Imported, import_all
from iwp_export.device.power import find_meters
from iwp_export.device.state import DeviceState, read_state, warnings
from iwp_export.device.toolchain import explain_nvcc, find_host_compiler
from iwp_export.device.words import meter_rows, speed_rows
from iwp_export.engine.kernels import LIBRARY_VARIABLE, PLUGIN_VARIABLE
from iwp_export.tables import human_bytes, pairs, table
from iwp_export.version import __version__

DESCRIPTION = "Show what this machine can export, build and run, and the command that installs what is missing."
EXAMPLES = """\
  iwp-export doctor           a page for people
  iwp-export doctor --json    the same for programs
"""

CORE = {
    "numpy": "numpy",
    "PIL": "pillow",
    "rich": "rich",
    "tokenizers": "tokenizers",
    "transformers": "transformers",
    "jinja2": "jinja2",
}
EXPORT = {
    "torch": "torch",
    "onnx": "onnx",
    "onnx_ir": "onnx-ir",
    "onnxscript": "onnxscript",
    "safetensors": "safetensors",
}
BUILD = {"onnx": "onnx", "onnx_ir": "onnx-ir"}
ORT = {"onnxruntime": "onnxruntime"}
REPORT = {"matplotlib": "matplotlib"}
ENGINES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
"""Modules and the distributions they come from."""
EXTRAS = {"": CORE, "[build]": BUILD, "[export]": EXPORT, "[ort]": ORT, "[report]": REPORT}
"""Extras of this package that bring them; the smallest comes first."""

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
    report = examine()
    print(json.dumps(report, indent=2) if args.json else describe(report))


def examine() -> dict[str, Any]:
    """The report as JSON values: `machine`, `gpus`, `nvcc`, `packages`, `can` by task, and others."""
    machine = describe_machine()
    state = read_state()
    on_jetson = is_jetson(machine)
    imported = import_all({**CORE, **EXPORT, **REPORT, **ORT, **ENGINES})
    lacks = {module: _package_lack(module, found, machine) for module, found in imported.items()}
    gpus, no_gpu = find_gpus()
    if on_jetson and not gpus:  # a Jetson's GPU is on the board, and older JetPacks have no nvidia-smi
        gpus, no_gpu = [{"name": machine["board"]}], None
    gpu_lack = Lack("GPU", no_gpu) if no_gpu else None
    gpu = find_gpu()
    cuda = gpu.cuda if gpu else None
    nvcc, no_nvcc = explain_nvcc(cuda)
    _, no_compiler = find_host_compiler()
    compile_lacks = [
        Lack("nvcc", no_nvcc, JETPACK if on_jetson else _nvcc_package(cuda)) if no_nvcc else None,
        Lack("C++ compiler", no_compiler, "sudo apt install g++") if no_compiler else None,
    ]
    return {
        "iwp_export": __version__,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "machine": machine,
        "gpus": gpus,
        "nvcc": nvcc,
        "state": to_json(state),
        "meters": dict(meter_rows(find_meters())),
        "warnings": warnings(state),
        "libraries": {name: os.environ.get(name) for name in (LIBRARY_VARIABLE, PLUGIN_VARIABLE)},
        "packages": {
            module: {
                "ok": found.problem is None,
                "version": found.version,
                "problem": found.problem,
                "install": lack.install if (lack := lacks[module]) else None,
            }
            for module, found in imported.items()
        },
        "providers": list(imported["onnxruntime"].providers),
        "can": {
            task: {"ok": not needs, "missing": [vars(need) for need in needs]}
            for task, needs in _tasks(imported, lacks, gpu_lack, compile_lacks).items()
        },
    }


def _tasks(
    imported: Mapping[str, Imported],
    lacks: Mapping[str, Lack | None],
    gpu: Lack | None,
    compilers: Sequence[Lack | None],
) -> dict[str, list[Lack]]:
    """What each task lacks; nothing where it can be done."""
    core, export, ort = ([lacks[module] for module in group] for group in (CORE, EXPORT, ORT))
    lowering = [*core, lacks["onnx"], lacks["onnx_ir"]]
    named = os.environ.get(LIBRARY_VARIABLE) or os.environ.get(PLUGIN_VARIABLE)
    kernels = [] if named else compilers  # compiled for the GPU by the first engine that runs
    tasks: dict[str, list[Lack | None]] = {
        "export bundles": [*core, *export],
        "calibrate": [*core, *export, lacks["matplotlib"]],
        "run bundles on the CPU": [*core, *ort, _provider_lack("cpu", imported)],
        "run bundles on CUDA": [*core, *ort, _provider_lack("cuda", imported), gpu],
        "build and run TensorRT engines": [*lowering, lacks["tensorrt"], gpu, *kernels],
        "build TensorRT-RTX engines": [*lowering, lacks["tensorrt_rtx"]],
        "run TensorRT-RTX engines": [*core, lacks["tensorrt_rtx"], gpu, *kernels],
        "compile the CUDA kernels": [*compilers],
    }
    return {task: [need for need in needs if need is not None] for task, needs in tasks.items()}


def _package_lack(module: str, found: Imported, machine: Mapping[str, Any]) -> Lack | None:
    if found.problem is None:
        return None
    name = next(group[module] for group in (*EXTRAS.values(), ENGINES) if module in group)
    if found.problem == NO_ARRAYS:
        return Lack(name, f"{found.version}: {found.problem}", "pip install 'numpy<2'")
    if module == "tensorrt_rtx" and machine["architecture"].lower() not in RTX_MACHINES:
        return Lack(name, f"{found.problem}: there is no package for {machine['architecture']}")
    if module == "tensorrt":
        install = JETPACK_PYTHON if is_jetson(machine) else "pip install tensorrt"
    elif found.problem != "not installed":
        install = f"pip install --force-reinstall {name}"
    else:
        extra = next((extra for extra, group in EXTRAS.items() if module in group), None)
        install = f"pip install {name}" if extra is None else f"pip install 'iwp-export{extra}'"
    return Lack(name, found.problem, install)


def _provider_lack(provider: str, imported: Mapping[str, Imported]) -> Lack | None:
    ort = imported["onnxruntime"]
    if ort.problem is not None or PROVIDERS[provider] in ort.providers:
        return None  # a missing ONNX Runtime is said once, as a package
    return Lack(PROVIDERS[provider], "this ONNX Runtime was built without it", how_to_install(provider))


def _nvcc_package(cuda: int | None) -> str:
    if cuda is None or cuda >= OLDEST_PACKAGED_NVCC:
        return NVCC
    return f"install NVIDIA's CUDA toolkit {cuda}, which the driver runs, or update the driver"


def describe(report: Mapping[str, Any]) -> str:
    """The report as text for people."""
    machine = report["machine"]
    sizes = {key: human_bytes(machine[key]) if machine[key] else "unknown" for key in machine if key.endswith("_bytes")}
    packages = [(_state(found), module, *_package_cells(found)) for module, found in report["packages"].items()]
    speed = speed_rows(from_json(DeviceState, report["state"], ""))
    speed += [*report["meters"].items(), *(("warning", line) for line in report["warnings"])]
    sections = [
        f"iwp-export {report['iwp_export']}, Python {report['python']['version']} ({report['python']['executable']})\n"
        f"{machine['board'] or machine['system']}, {machine['architecture']}, {machine['cpus']} CPUs, "
        f"memory {sizes['memory_bytes']} ({sizes['memory_available_bytes']} free), "
        f"disk {sizes['disk_free_bytes']} free here",
        "GPUs\n" + (table([list(gpu.values()) for gpu in report["gpus"]], "  ") or "  none"),
        "clocks and power\n" + (pairs(speed, "  ") or "  nothing tells"),
        "packages\n" + table(packages, "  "),
        f"ONNX Runtime's providers\n  {', '.join(report['providers']) or 'none'}",
        *(f"{name}\n  {path}" for name, path in report["libraries"].items() if path),
        "this machine can\n" + "\n".join(_task_line(task, found) for task, found in report["can"].items()),
    ]
    return "\n\n".join(sections)


def _state(found: Mapping[str, Any]) -> str:
    return "ok" if found["ok"] else "missing" if found["problem"] == "not installed" else "broken"


def _package_cells(found: Mapping[str, Any]) -> tuple[str, str]:
    return found["version"] or found["problem"], f"-> {found['install']}" if found["install"] else ""


def _task_line(task: str, found: Mapping[str, Any]) -> str:
    lines = [f"  {'yes' if found['ok'] else 'no ':<3}  {task}"]
    for need in found["missing"]:
        lines.append(f"         {need['what']}: {need['why']}" + (f" -> {need['install']}" if need["install"] else ""))
    return "\n".join(lines)
