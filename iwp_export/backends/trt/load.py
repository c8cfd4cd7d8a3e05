"""TensorRT-RTX compiles kernels for the GPU while an engine runs; what it compiled is kept from process to process."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iwp_export.backends.trt.device import CudaDevice
from iwp_export.backends.trt.runner import JitCache, Reservation, Runner, activation_bytes, deserialize
from iwp_export.backends.trt.session import TrtSession
from iwp_export.bundle.manifest import FileEntry, Manifest
from iwp_export.bundle.store import Verify
from iwp_export.device.gpu import Gpu
from iwp_export.engine.files import EngineInfo, check_fingerprint, read_engine
from iwp_export.engine.flavour import Flavour, load_flavour
from iwp_export.engine.kernels import PLUGIN_VARIABLE, KernelLibrary, NoKernels, find_kernels
from iwp_export.engine.log import make_logger, make_printing_logger
from iwp_export.engine.network import register_plugin
from iwp_export.engine.profiles import DECODE, PREFILL
from iwp_export.files import cache_folder
from iwp_export.pruning.onnx_function import VERSION


@dataclass(frozen=True)
class OpenedEngine:
    """A loaded engine: its manifest within the engine's limits, its processor's folder, and the session."""

    manifest: Manifest
    processor: Path
    session: TrtSession


def load_engine(path: Path | str, verify: Verify = "quick", kernels: KernelLibrary | None = None) -> OpenedEngine:
    """Load NAME.plan, with what lies beside it.

    Args:
        path: NAME.plan, as `iwp-export build` wrote it.
        verify: see `iwp_export.engine.files.read_engine`.
        kernels: the pruning kernels; found if left out.

    Raises:
        BundleError: a file is missing or changed.
        BackendError: TensorRT, a GPU or the kernels are missing, or the engine is for another machine.
    """
    paths, info = read_engine(path, verify)
    flavour = load_flavour(info.fingerprint.flavour)
    device = CudaDevice()
    check_fingerprint(paths, info, flavour, device.gpu, str(VERSION))
    logger = (make_printing_logger if flavour.name == "rtx" else make_logger)(flavour.trt)
    report: list[str] = []
    _register(flavour, kernels, device.gpu, report)
    engines: dict[str, Any] = {}
    owners: list[Any] = []
    caches: dict[str, JitCache] = {}
    for name in info.manifest.graphs:
        file = paths.graph(name)
        runtime, engines[name] = deserialize(flavour.trt, logger, file)
        owners += [runtime, engines[name]]
        if flavour.name == "rtx":
            caches[name] = JitCache(flavour.trt, engines[name], _jit_file(info.files[file.name], device.gpu))
    roles = _roles(info)
    # One for all contexts, which run one after another on one stream. Reserved before any is made: without memory some
    # releases end the process.
    activations = Reservation(device, max(activation_bytes(engines[name], profile) for name, profile in roles.values()))
    runners = {
        role: Runner(
            flavour.trt,
            engines[name],
            logger,
            profile,
            device.stream,
            f"{role} engine",
            activations,
            report,
            caches.get(name),
            specialize=role != "decode",
        )
        for role, (name, profile) in roles.items()
    }

    def save() -> None:
        for cache in caches.values():
            cache.save()

    manifest = _within(info)
    session = TrtSession(manifest, info.limits, runners, device, flavour.title, owners, save)
    weakref.finalize(session, save)  # at the end of the process, too
    return OpenedEngine(manifest, paths.processor, session)


def _register(flavour: Flavour, kernels: KernelLibrary | None, gpu: Gpu, report: list[str]) -> None:
    """Register the plugin that will run: the library that the user names, or the one in Python with its kernels."""
    if library := os.environ.get(PLUGIN_VARIABLE):
        register_plugin(flavour, NoKernels(), report.append, Path(library))
    else:
        register_plugin(flavour, kernels or find_kernels(gpu), report.append)


def _roles(info: EngineInfo) -> dict[str, tuple[str, int]]:
    """The runners: each one's engine and optimisation profile.

    Without a profile of their own, decode steps are short prompts; TensorRT-RTX still runs them in a context of their
    own, since it must not compile kernels for each one's shapes.
    """
    roles = {"vision": ("vision", 0), "prefill": ("decoder", PREFILL)}
    if info.profiles == 2:
        roles["decode"] = ("decoder", DECODE)
    elif info.fingerprint.flavour == "rtx":
        roles["decode"] = ("decoder", PREFILL)
    return roles


def _jit_file(engine: FileEntry, gpu: Gpu) -> Path:
    return cache_folder() / "rtx" / f"{engine.sha256[:16]}-sm{gpu.sm}.cache"


def _within(info: EngineInfo) -> Manifest:
    """The manifest with the engine's context as the model's: conversations end there."""
    decoder = info.manifest.decoder
    positions = min(decoder.max_positions, info.limits.max_context)
    return replace(info.manifest, decoder=replace(decoder, max_positions=positions))
