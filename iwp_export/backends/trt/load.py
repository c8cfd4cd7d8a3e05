"""Load an engine. Version and GPU mismatches are reported before deserialising."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iwp_export.backends.trt.device import CudaDevice, Device
from iwp_export.backends.trt.jit import JitCache
from iwp_export.backends.trt.runner import Runner, deserialize
from iwp_export.backends.trt.session import TrtSession
from iwp_export.bundle.manifest import FileEntry, Manifest
from iwp_export.bundle.store import Verify
from iwp_export.cache import cache_folder
from iwp_export.device.gpu import Gpu
from iwp_export.engine.files import EngineInfo, check_fingerprint, read_engine
from iwp_export.engine.flavour import Flavour, load_flavour
from iwp_export.engine.kernel_library import find_kernels
from iwp_export.engine.kernels import PLUGIN_VARIABLE, KernelLibrary, NoKernels
from iwp_export.engine.log import make_logger, make_printing_logger
from iwp_export.engine.network import register_plugin
from iwp_export.engine.profiles import DECODE, PREFILL
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
    owners: list[Any] = []
    runners: dict[str, Runner] = {}
    caches: list[JitCache] = []
    for file, roles in ((paths.vision, {"vision": 0}), (paths.decoder, _decoder_roles(info))):
        runtime, engine = deserialize(flavour.trt, logger, file)
        owners += [runtime, engine]
        jit = None
        if flavour.name == "rtx":
            jit = JitCache(flavour.trt, engine, _jit_file(info.files[file.name], device.gpu))
            caches.append(jit)
        for role, profile in roles.items():
            _require_memory(device, engine, profile)
            runners[role] = Runner(
                flavour.trt,
                engine,
                logger,
                profile,
                device.stream,
                f"{role} engine",
                report,
                jit,
                specialize=role != "decode",
            )

    def save() -> None:
        for cache in caches:
            cache.save()

    manifest = _within(info)
    session = TrtSession(manifest, info.limits, runners, device, flavour.title, owners, save)
    weakref.finalize(session, save)  # at the end of the process, too
    return OpenedEngine(manifest, paths.processor, session)


def _require_memory(device: Device, engine: Any, profile: int) -> None:
    """Refuse where the GPU lacks the memory that a context needs: some releases end the process when they find out."""
    device.free(device.allocate(engine.get_device_memory_size_for_profile_v2(profile)))


def _register(flavour: Flavour, kernels: KernelLibrary | None, gpu: Gpu, report: list[str]) -> None:
    """Register the plugin that will run: the library that the user names, or the one in Python with its kernels."""
    if library := os.environ.get(PLUGIN_VARIABLE):
        register_plugin(flavour, NoKernels(), report.append, Path(library))
    else:
        register_plugin(flavour, kernels or find_kernels(gpu), report.append)


def _decoder_roles(info: EngineInfo) -> dict[str, int]:
    """The decoder's runners and their profiles; a context starts on profile 0, so the smaller one is made first.

    Without a profile of their own, decode steps are short prompts; TensorRT-RTX still runs them in a context of their
    own, since it must not compile kernels for each one's shapes.
    """
    if info.profiles == 2:
        return {"decode": DECODE, "prefill": PREFILL}
    return {"decode": PREFILL, "prefill": PREFILL} if info.fingerprint.flavour == "rtx" else {"prefill": PREFILL}


def _jit_file(engine: FileEntry, gpu: Gpu) -> Path:
    return cache_folder() / "rtx" / f"{engine.sha256[:16]}-sm{gpu.sm}.cache"


def _within(info: EngineInfo) -> Manifest:
    """The manifest with the engine's context as the model's: conversations end there."""
    decoder = info.manifest.decoder
    positions = min(decoder.max_positions, info.limits.max_context)
    return replace(info.manifest, decoder=replace(decoder, max_positions=positions))
