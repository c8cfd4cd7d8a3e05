"""ONNX Runtime's execution providers: by short name. A fall-back to the CPU is an error."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from iwp_export.errors import BackendError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rtx": "NvTensorRTRTXExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
CUDA_PROVIDERS = ("cuda", "tensorrt", "rtx")
"""Providers whose outputs stay in CUDA memory between steps; the others hand them over in host memory."""
OPTIONS = {"cuda": {"use_tf32": "0"}}
"""Options of providers. TF32 rounds the factors of float32 products to 10 bits: the scores of tokens need all 23."""
GPU_PACKAGE = "pip uninstall onnxruntime, then pip install 'iwp-export[ort-gpu]'"
NO_GPU_PACKAGE = (
    "PyPI has no onnxruntime-gpu for {machine} and Python {python}; on a Jetson build a TensorRT engine instead"
)
INSTALL = {
    "cpu": "pip install 'iwp-export[ort]'",
    "cuda": f"{GPU_PACKAGE}; it needs an NVIDIA driver, CUDA and cuDNN",
    "tensorrt": f"{GPU_PACKAGE}; it needs TensorRT beside CUDA",
}
"""Commands for where there are packages; see `how_to_install`."""
GPU_PACKAGE_PYTHON = {"x86_64": (3, 10), "amd64": (3, 10), "aarch64": (3, 11)}
"""Processors for which PyPI has onnxruntime-gpu, and from which Python on (looked up in November 2026)."""
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
"""Where a model that comes as bytes has its external weights (onnxruntime_session_options_config_keys.h)."""
LOG_ERRORS = 3
"""ONNX Runtime's log severity from which lines are printed: a provider that falls back is an error here anyway."""


def available_providers() -> list[str]:
    """Short names of the providers of the installed ONNX Runtime, best first; its own names where it has no short one.

    Raises:
        BackendError: ONNX Runtime is not installed.
    """
    return _short(_onnxruntime().get_available_providers())


def how_to_install(provider: str) -> str:
    """The command that brings a provider to this machine, or what to do where no package has it."""
    machine, python = platform.machine(), sys.version_info[:2]
    if provider in ("cuda", "tensorrt") and python < GPU_PACKAGE_PYTHON.get(machine.lower(), (4, 0)):
        return NO_GPU_PACKAGE.format(machine=machine, python=f"{python[0]}.{python[1]}")
    return INSTALL.get(provider, f"install an ONNX Runtime package that has {PROVIDERS[provider]}")


def device_of(provider: str) -> tuple[str, int]:
    """Device type and number, in ONNX Runtime's terms, where a provider leaves its outputs."""
    return ("cuda", 0) if provider in CUDA_PROVIDERS else ("cpu", 0)


def create_session(model: Path | bytes, provider: str, threads: int | None = None, weights: Path | None = None) -> Any:
    """An `onnxruntime.InferenceSession` in which `provider` is the active one.

    Args:
        model: path of the ONNX file; its external weights are mapped from beside it. Or a file's content.
        provider: a short name of `PROVIDERS`.
        threads: threads of one operator; None is ONNX Runtime's choice.
        weights: for a file's content, the folder of its external weights. They are mapped, and not copied to suit
            the operators either: a model that runs beside another one of the same weights.

    Raises:
        BackendError: the provider is unknown, not in this build of ONNX Runtime, or did not become active, or the
            model cannot be loaded.
    """
    onnxruntime = _onnxruntime()
    cores = os.cpu_count() or 1  # far more threads than cores bring a machine to a stand
    if threads is not None and (type(threads) is not int or not 1 <= threads <= cores):
        raise BackendError(
            f"threads must be a whole number from 1 to this machine's {cores} cores, got {threads!r}",
            options=("threads",),
        )
    if provider not in PROVIDERS:
        raise BackendError(f"unknown provider {provider!r}; known are {', '.join(PROVIDERS)}")
    name = PROVIDERS[provider]
    if name not in onnxruntime.get_available_providers():
        raise BackendError(_missing(provider, "this ONNX Runtime was built without it"))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_ERRORS
    if threads is not None:
        options.intra_op_num_threads = threads
    if weights is not None:
        options.add_session_config_entry(EXTERNAL_FOLDER, str(weights))
        options.add_session_config_entry("session.disable_prepacking", "1")
    wanted: list[Any] = [(name, OPTIONS[provider]) if provider in OPTIONS else name]
    if provider != "cpu":
        wanted.append(PROVIDERS["cpu"])
    try:
        content = model if isinstance(model, bytes) else str(model)
        session = onnxruntime.InferenceSession(content, options, providers=wanted)
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        reason = str(error).strip().splitlines()[0]
        what = "the graph" if isinstance(model, bytes) else model
        raise BackendError(f"ONNX Runtime {onnxruntime.__version__} cannot load {what}: {reason}") from error
    if session.get_providers()[0] != name:
        raise BackendError(_missing(provider, "it could not be loaded and ONNX Runtime fell back to the CPU"))
    session.disable_fallback()
    return session


def _missing(provider: str, reason: str) -> str:
    available = ", ".join(available_providers())
    remedy = how_to_install(provider)
    return f"provider {provider} is not active: {reason}. Available are {available}. To get it: {remedy}"


def _short(names: Iterable[str]) -> list[str]:
    short = {name: key for key, name in PROVIDERS.items()}
    return [short.get(name, name) for name in names]


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"ONNX Runtime is not installed ({error}). To get it: {INSTALL['cpu']}") from error
    # For Windows, and where it was imported before this package, which sets ORT_DISABLE_TELEMETRY.
    onnxruntime.disable_telemetry_events()
    return onnxruntime
