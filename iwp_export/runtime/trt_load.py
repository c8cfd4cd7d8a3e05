"""NAME.plan becomes a session: what does not match this machine is said before TensorRT is asked."""

from __future__ import annotations

import os
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

from iwp_export.bundle.manifest import FileEntry, Manifest
from iwp_export.bundle.store import Verify
from iwp_export.cache import cache_folder
from iwp_export.engine.flavour import Flavour, load_flavour
from iwp_export.engine.gpu import Gpu
from iwp_export.engine.kernel_library import find_kernels
from iwp_export.engine.kernels import PLUGIN_VARIABLE, KernelLibrary, NoKernels
from iwp_export.engine.log import make_logger
from iwp_export.engine.network import register_plugin
from iwp_export.engine.plan import PlanInfo, check_fingerprint, read_plan
from iwp_export.engine.profiles import DECODE, PREFILL
from iwp_export.pruning.onnx_function import VERSION
from iwp_export.runtime.model import LoadedModel
from iwp_export.runtime.processor import Processor
from iwp_export.runtime.trt import TrtSession
from iwp_export.runtime.trt_device import CudaDevice
from iwp_export.runtime.trt_engine import Runner, deserialize
from iwp_export.runtime.trt_jit import JitCache


def load_plan(path: Path | str, verify: Verify = "quick", kernels: KernelLibrary | None = None) -> LoadedModel:
    """Load NAME.plan with what lies beside it.

    Args:
        path: NAME.plan, as `iwp-export build` wrote it.
        verify: see `iwp_export.engine.plan.read_plan`.
        kernels: the pruning kernels; found if left out.

    Raises:
        BundleError: a file is missing or changed.
        BackendError: TensorRT, a GPU or the kernels are missing, or the engine is for another machine.
    """
    paths, info = read_plan(path, verify)
    flavour = load_flavour(info.fingerprint.flavour)
    device = CudaDevice()
    check_fingerprint(paths, info, flavour, device.gpu, str(VERSION))
    logger = make_logger(flavour.trt)
    report: list[str] = []
    owners: list[Any] = [_register(flavour, kernels, device.gpu, report)]
    runners: dict[str, Runner] = {}
    caches: list[JitCache] = []
    for file, roles in ((paths.vision, {"vision": 0}), (paths.decoder, _decoder_roles(info))):
        runtime, engine = deserialize(flavour.trt, logger, file)
        owners += [runtime, engine]
        if flavour.name == "rtx":
            caches.append(JitCache(flavour.trt, engine, _jit_file(info.files[file.name], device.gpu)))
        for role, profile in roles.items():
            config = caches[-1].config(specialize=role != "decode") if caches else None
            title = f"{role} engine"
            runners[role] = Runner(flavour.trt, engine, logger, profile, device.stream, title, report, config)

    def save() -> None:
        for cache in caches:
            cache.save()

    manifest = _within(info)
    session = TrtSession(manifest, info.limits, runners, device, flavour.title, owners, save)
    weakref.finalize(session, save)  # at the end of the process, too
    return LoadedModel(manifest, Processor(paths.processor, manifest.vision), session)


def _register(flavour: Flavour, kernels: KernelLibrary | None, gpu: Gpu, report: list[str]) -> Any:
    """Register the plugin that will run: the library that the user names, or the one in Python with its kernels."""
    if library := os.environ.get(PLUGIN_VARIABLE):
        return register_plugin(flavour, NoKernels(), report.append, Path(library))
    return register_plugin(flavour, kernels or find_kernels(gpu.sm), report.append)


def _decoder_roles(info: PlanInfo) -> dict[str, int]:
    """The decoder's runners and their profiles.

    Without a profile of their own, decode steps are short prompts; TensorRT-RTX still runs them in a context of their
    own, since it must not compile kernels for each one's shapes.
    """
    if info.profiles == 2:
        return {"prefill": PREFILL, "decode": DECODE}
    return {"prefill": PREFILL, "decode": PREFILL} if info.fingerprint.flavour == "rtx" else {"prefill": PREFILL}


def _jit_file(engine: FileEntry, gpu: Gpu) -> Path:
    return cache_folder() / "rtx" / f"{engine.sha256[:16]}-sm{gpu.sm}.cache"


def _within(info: PlanInfo) -> Manifest:
    """The manifest with the engine's context as the model's: conversations end there."""
    decoder = info.manifest.decoder
    positions = min(decoder.max_positions, info.limits.max_context)
    return replace(info.manifest, decoder=replace(decoder, max_positions=positions))
