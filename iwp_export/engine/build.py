"""A bundle becomes engines: what builds here and for what, the plan of a build with its memory, and the build."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iwp_export.bundle.manifest import DecoderInfo, VisionInfo
from iwp_export.bundle.store import Bundle
from iwp_export.device.gpu import Gpu, find_gpu
from iwp_export.device.machine import available_bytes
from iwp_export.engine.files import EngineInfo, EngineWriter, Fingerprint
from iwp_export.engine.flavour import (
    INSTALL,
    TITLES,
    Flavour,
    FlavourName,
    Target,
    is_installed,
    load_flavour,
    target_for,
)
from iwp_export.engine.kernels import KernelLibrary, NoKernels, check_kernels, find_kernels
from iwp_export.engine.network import BuildMemoryError, EngineBuilder, check_architectures
from iwp_export.engine.profiles import EngineLimits, choose_limits, profiles_for
from iwp_export.errors import BackendError, OutputError, SettingsError, os_reason
from iwp_export.pruning.onnx_function import VERSION
from iwp_export.pruning.settings import check_keep
from iwp_export.settings import BuildSettings as BuildSettings

GRAPH_TITLES = {"decoder": "language model", "vision": "vision tower"}
"""What messages call a bundle's graphs."""

BASE_BYTES = 600 << 20
"""Host memory that TensorRT takes for a small model."""
COPIES_OF_WEIGHTS = {1: 3.2, 2: 6.0}
"""Host memory per byte of weights by number of profiles, measured; docs/tensorrt.md has the figures."""

DEFAULT_RTX_SMS = ("86", "89", "120")
"""RTX 30, 40 and 50 desktop cards."""


@dataclass(frozen=True)
class Machine:
    """What builds here, and for what.

    Attributes:
        flavour: the TensorRT that is installed.
        target: what its parser takes.
        sms: architectures that the engine will hold code for.
        gpu: this machine's GPU where the engine is for it; None for TensorRT-RTX.
    """

    flavour: Flavour
    target: Target
    sms: tuple[str, ...]
    gpu: Gpu | None

    @property
    def loads_on(self) -> str:
        """On what the engine will load, in words."""
        if self.gpu is None:
            return f"{self.flavour.title} and a GPU of SM {', '.join(self.sms)}"
        return f"{self.flavour.title} and a {self.gpu.name} (SM {self.gpu.sm}), as here"


@dataclass(frozen=True)
class BuildPlan:
    """What a build would make; the same for a bundle that is there and for one that will be exported first."""

    machine: Machine
    settings: BuildSettings
    limits: EngineLimits
    profiles: int
    keep: float
    weight_bytes: int

    @property
    def memory_bytes(self) -> int:
        """Estimate of the host memory that the build takes at its peak."""
        return BASE_BYTES + int(COPIES_OF_WEIGHTS[self.profiles] * self.weight_bytes)

    def require_memory(self) -> None:
        """Refuse a build that would not fit, unless the settings say not to check.

        Raises:
            BuildMemoryError: the estimate exceeds what is available.
        """
        needed, available = self.memory_bytes, available_bytes()
        if needed > available and not self.settings.skip_memory_check:
            raise BuildMemoryError(
                f"building the engine needs about {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are "
                "available: close other programs, add swap, build on a larger machine, or skip this check",
                options=("skip_memory_check",),
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "target": self.machine.flavour.name,
            "version": self.machine.flavour.version,
            "sms": list(self.machine.sms),
            "loads_on": self.machine.loads_on,
            **vars(self.limits),
            "profiles": self.profiles,
            "keep": self.keep,
            "weight_bytes": self.weight_bytes,
            "memory_bytes": self.memory_bytes,
        }


def choose_target() -> FlavourName:
    """Which TensorRT builds here: full TensorRT with a GPU, else TensorRT-RTX.

    Raises:
        BackendError: neither can build; the message names the two ways on.
    """
    if is_installed("tensorrt") and find_gpu() is not None:
        return "tensorrt"
    if is_installed("rtx"):
        return "rtx"
    missing = "has no GPU" if is_installed("tensorrt") else "has no TensorRT"
    raise BackendError(
        f"no engine can be built here: this machine {missing}, and TensorRT-RTX, which needs no GPU to build, is not "
        "installed. Two ways on: export a bundle (-o NAME.bundle) and run `iwp-export build NAME.bundle -o NAME.plan` "
        f"on the target machine; or, for GeForce and other RTX cards, {INSTALL['rtx']}"
    )


def choose_machine(settings: BuildSettings) -> Machine:
    """Check what can be checked without a model.

    Raises:
        BackendError: TensorRT is missing, too old, or does not build for the architecture, or there are no kernels.
    """
    name = settings.target or choose_target()
    flavour = load_flavour(name)
    target = target_for(name, flavour.version)
    gpu = find_gpu() if name == "tensorrt" else None
    sms = _architectures(name, settings.sm, gpu)
    if name == "rtx":
        check_architectures(flavour, sms)
        if settings.timing_cache is not None:
            raise BackendError(
                f"a timing cache is for target tensorrt: {flavour.title} measures no kernels while it builds; "
                "it compiles them where the engine runs, and iwp-export keeps them there",
                options=("timing_cache", "target"),
            )
    if gpu is not None and settings.plugin is None:
        check_kernels(gpu)
    return Machine(flavour, target, sms, gpu)


def plan_build(
    machine: Machine,
    settings: BuildSettings,
    decoder: DecoderInfo,
    vision: VisionInfo,
    keep: float,
    weight_bytes: int,
) -> BuildPlan:
    """What a build would make; nothing is written.

    Args:
        machine: from `choose_machine` with the same settings.
        settings: what to build for.
        decoder, vision: of a bundle's manifest, or of the plan of an export.
        keep: the exported keep ratio.
        weight_bytes: of the largest graph.

    Raises:
        SettingsError: limits contradict each other or the model, or profiles are neither 1 nor 2.
    """
    limits = choose_limits(decoder, vision, settings.max_context, settings.max_prompt, settings.max_images)
    keep = keep if settings.keep is None else settings.keep
    check_keep(keep)
    profiles = settings.profiles
    if profiles is None:
        profiles = 1 if machine.flavour.name == "rtx" else 2
    if profiles not in COPIES_OF_WEIGHTS:
        raise SettingsError(f"profiles must be 1 or 2, got {profiles}", options=("profiles",))
    return BuildPlan(machine, settings, limits, profiles, keep, weight_bytes)


def plan_for_bundle(bundle: Bundle, machine: Machine, settings: BuildSettings) -> BuildPlan:
    """The plan of a bundle that is there; see `plan_build`."""
    manifest = bundle.manifest
    weight_bytes = max(bundle.path(graph.weights).stat().st_size for graph in manifest.graphs.values())
    return plan_build(machine, settings, manifest.decoder, manifest.vision, manifest.pruning.keep, weight_bytes)


def build_engine(
    bundle: Bundle, plan: BuildPlan, output: Path | str, *, force: bool = False, source: str | None = None
) -> EngineInfo:
    """Build the engines of a bundle: NAME.plan, one NAME.ROLE.plan for each other graph, NAME.processor and NAME.json.

    Args:
        bundle: the bundle.
        plan: from `plan_for_bundle`, or `plan_build` with what this bundle was exported from.
        output: NAME.plan; all files appear, or none.
        force: replace an engine that is there already.
        source: arguments of `iwp-export` that name what the engine was made from; `build BUNDLE` if left out.

    Raises:
        OutputError: the output exists or cannot be written.
        BackendError: see `EngineBuilder.build`.
        BuildMemoryError: the build does not fit into memory.
    """
    writer = EngineWriter(output, force)  # refuses an existing output before any work
    settings, manifest = plan.settings, bundle.manifest
    plan.require_memory()
    flavour, sms = plan.machine.flavour, plan.machine.sms
    ahead = sms if flavour.name == "rtx" else ()
    builder = EngineBuilder(flavour, ahead, _kernels(plan.machine, settings), settings.plugin, settings.timing_cache)
    with writer:
        try:
            for role in manifest.graphs:
                _build_graph(builder, bundle, plan, role, writer.staged(writer.paths.graph(role)))
            bundle.copy_processor(writer.staged(writer.paths.processor))
        except OSError as error:  # a full disk, mostly
            raise OutputError(f"Cannot write {output}: {os_reason(error)}") from error
        fingerprint = Fingerprint(flavour.name, flavour.version, sms, str(VERSION))
        made_from = source or f"build {shlex.quote(str(bundle.folder))}"
        return writer.commit(EngineInfo(fingerprint, plan.limits, plan.profiles, plan.keep, made_from, manifest, {}))


def _build_graph(builder: Any, bundle: Bundle, plan: BuildPlan, role: str, output: Path) -> None:
    from iwp_export.engine.lowering.lower import write_lowered

    spec = bundle.manifest.graphs[role]
    folder = output.with_name(f"{role}.lowered")
    folder.mkdir()
    graph, plugins = write_lowered(bundle.path(spec.file), bundle.path(spec.weights), folder, plan.machine.target)
    profiles = profiles_for(bundle.manifest, role, plan.limits, plan.keep, plan.profiles)
    engine = builder.build(graph, plugins, profiles, GRAPH_TITLES.get(role, role))
    output.write_bytes(memoryview(engine))
    shutil.rmtree(folder)


def _kernels(machine: Machine, settings: BuildSettings) -> KernelLibrary:
    """What the plugin in Python calls: on a GPU TensorRT may run it while it builds; without one it asks for sizes."""
    if machine.gpu is None or settings.plugin is not None:
        return NoKernels()
    return find_kernels(machine.gpu)


def _architectures(name: FlavourName, wanted: Sequence[str] | None, gpu: Gpu | None) -> tuple[str, ...]:
    if name == "tensorrt":
        if gpu is None:
            raise BackendError(
                f"{TITLES[name]} builds on the machine that runs the engine, and this one has no NVIDIA GPU: "
                "run `iwp-export build` on the target, or choose target rtx for RTX cards",
                options=("target",),
            )
        if wanted:
            raise BackendError(
                f"architectures are chosen for target rtx: a {TITLES[name]} engine is for this machine's SM {gpu.sm}",
                options=("sm", "target"),
            )
        return (gpu.sm,)
    sms = tuple(dict.fromkeys(wanted or DEFAULT_RTX_SMS))
    if unknown := [sm for sm in sms if not sm.isdigit()]:
        raise BackendError(
            f"architectures are numbers such as {','.join(DEFAULT_RTX_SMS)}, got {unknown[0]!r}", options=("sm",)
        )
    return sms
