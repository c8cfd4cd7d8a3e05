"""NAME.plan becomes a session. Version and GPU mismatches are reported before TensorRT deserialises anything."""

from __future__ import annotations

import os
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

from iwp_export.backends.trt.device import Device
from iwp_export.backends.trt.runner import JitCache, Reservation, Runner, deserialize
from iwp_export.backends.trt.session import TrtSession
from iwp_export.bundle.manifest import Manifest
from iwp_export.bundle.store import Verify
from iwp_export.engine.files import EngineInfo, check_fingerprint, read_engine
from iwp_export.engine.flavour import load_flavour
from iwp_export.engine.kernels import PLUGIN_VARIABLE, NoKernels, find_kernels
from iwp_export.engine.log import make_logger, make_printing_logger
from iwp_export.engine.network import register_plugin
from iwp_export.engine.profiles import DECODE, PREFILL
from iwp_export.files import cache_folder
from iwp_export.pruning.onnx_function import VERSION


def load_engine(path: Path | str, verify: Verify = "quick") -> tuple[Manifest, Path, TrtSession]:
    """Load NAME.plan, with what lies beside it.

    Args:
        path: NAME.plan, as `iwp-export build` wrote it.
        verify: see `iwp_export.engine.files.read_engine`.

    Returns:
        The manifest within the engine's limits, the processor's folder, and the session.

    Raises:
        BundleError: a file is missing or changed.
        BackendError: TensorRT, a GPU or the kernels are missing, or the engine is for another machine.
    """
    paths, info = read_engine(path, verify)
    flavour = load_flavour(info.fingerprint.flavour)
    device = Device()
    check_fingerprint(paths, info, flavour, device.gpu, str(VERSION))
    logger = (make_printing_logger if flavour.name == "rtx" else make_logger)(flavour.trt)
    report: list[str] = []
    if library := os.environ.get(PLUGIN_VARIABLE):
        register_plugin(flavour, NoKernels(), report.append, Path(library))
    else:
        register_plugin(flavour, find_kernels(device.gpu), report.append)
    engines: dict[str, Any] = {}
    owners: list[Any] = []
    caches: dict[str, JitCache] = {}
    for name in info.manifest.graphs:
        file = paths.graph(name)
        runtime, engines[name] = deserialize(flavour.trt, logger, file)
        owners += [runtime, engines[name]]
        if flavour.name == "rtx":
            kept = f"{info.files[file.name].sha256[:16]}-sm{device.gpu.sm}.cache"
            caches[name] = JitCache(flavour.trt, engines[name], cache_folder() / "rtx" / kept)
    roles = _roles(info)
    # One for all contexts, which run one after another on one stream. Reserved before any is made: without memory some
    # releases end the process.
    sizes = [engines[name].get_device_memory_size_for_profile_v2(profile) for name, profile in roles.values()]
    activations = Reservation(device, max(sizes))
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

    decoder = info.manifest.decoder  # with the engine's context as the model's: conversations end there
    positions = min(decoder.max_positions, info.limits.max_context)
    manifest = replace(info.manifest, decoder=replace(decoder, max_positions=positions))
    session = TrtSession(manifest, info.limits, runners, device, flavour.title, owners, save)
    weakref.finalize(session, save)  # at the end of the process, too
    return manifest, paths.processor, session


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
