"""What a measurement depends on beside the artefact: clocks, power mode, temperature, throttling, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field

from iwp_export.device import jetson, processor
from iwp_export.device.clock import Clock
from iwp_export.device.gpu import find_gpu
from iwp_export.device.machine import BOARD_FILE
from iwp_export.device.nvidia_smi import SmiReport, read_smi
from iwp_export.device.probe import Probe
from iwp_export.version import __version__

__all__ = ["Clock", "DeviceState", "package_versions", "read_state", "span", "warnings"]

PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "tokenizers",
    "torch",
    "transformers",
)
TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
"""Distributions that bring TensorRT; JetPack's package of the bindings is the first."""

LOCK_JETSON = "sudo jetson_clocks"
LOCK_CARD = "sudo nvidia-smi -lgc MHZ"
LOCK_CPU = "sudo cpupower frequency-set -g performance"
COOL_JETSON = "cool the board and check its supply, or take a smaller power mode: sudo nvpmodel -m N"
COOL_CARD = f"cool the card, or lock a clock that it holds: {LOCK_CARD}"
MOST_COUNTED = 2**31 - 1
"""What a report holds of a count."""
STEADY = "performance"
"""The governor that leaves a CPU at its highest frequency."""


@dataclass(frozen=True)
class DeviceState:
    """A machine at one moment. None is what could not be read; nothing is guessed.

    Attributes:
        system: the distribution and its kernel.
        board: as its maker names it, where the device tree does.
        jetpack, l4t: versions of NVIDIA's software for Jetson.
        gpu: name of the first GPU. `gpus`: how many there are.
        driver, cuda, tensorrt: versions; `cuda` is the newest that the driver runs, else the toolkit's.
        gpu_clock, memory_clock, cpu_clock: in MHz, and whether they are locked.
        cpu: the processor's name. `cpus`: how many this process may use.
        governor: how Linux chooses the CPUs' frequencies.
        power_mode: nvpmodel's name of it on a Jetson. `power_limit`: of a GPU card, in watts.
        temperatures: in degrees Celsius, by zone.
        throttling: what slows a clock down now; empty if nothing does, None if nothing tells.
        throttle_counts: how often something did since the machine started, by its name, where that is counted.
        packages: versions of installed Python packages.
    """

    system: str | None = None
    board: str | None = None
    jetpack: str | None = None
    l4t: str | None = None
    gpu: str | None = None
    gpus: int | None = None
    driver: str | None = None
    cuda: str | None = None
    tensorrt: str | None = None
    gpu_clock: Clock | None = None
    memory_clock: Clock | None = None
    cpu: str | None = None
    cpus: int | None = None
    cpu_clock: Clock | None = None
    governor: str | None = None
    power_mode: str | None = None
    power_limit: float | None = None
    temperatures: Mapping[str, float] = field(default_factory=dict)
    throttling: tuple[str, ...] | None = None
    throttle_counts: Mapping[str, int] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_jetson(self) -> bool:
        """Whether this is a Jetson."""
        return self.l4t is not None or "jetson" in (self.board or "").lower()


def read_state(probe: Probe | None = None) -> DeviceState:
    """The state of this machine now. It takes tens of milliseconds: nvidia-smi and nvpmodel are run.

    Args:
        probe: reads another tree of files and other programs' outputs; this machine's if None.
    """
    probe = probe or Probe()
    smi = read_smi(probe) or SmiReport(*[None] * 9)
    l4t = jetson.read_l4t(probe)
    here = probe.is_this_machine
    gpu = find_gpu() if here and smi.name is None else None
    alerts = jetson.read_throttling(probe)
    throttling = None if smi.throttling is None and alerts is None else (*(smi.throttling or ()), *(alerts or ()))
    temperatures = processor.read_temperatures(probe)
    if smi.temperature is not None:
        temperatures.setdefault("GPU", smi.temperature)
    return DeviceState(
        system=processor.read_system(probe) or (f"{platform.system()} {platform.release()}" if here else None),
        board=probe.text(BOARD_FILE) or None,
        jetpack=jetson.read_jetpack(probe, l4t),
        l4t=l4t,
        gpu=smi.name or (gpu.name if gpu else None),
        gpus=smi.gpus,
        driver=smi.driver,
        cuda=smi.cuda or jetson.read_cuda(probe),
        tensorrt=next(filter(None, map(_version, TENSORRT)), None) if here else None,
        gpu_clock=jetson.read_gpu_clock(probe) or smi.clock,
        memory_clock=jetson.read_memory_clock(probe) or smi.memory_clock,
        cpu=processor.read_cpu(probe),
        cpus=_cpus() if here else None,
        cpu_clock=processor.read_cpu_clock(probe),
        governor=processor.read_governor(probe),
        power_mode=jetson.read_power_mode(probe) if l4t else None,
        power_limit=smi.power_limit,
        temperatures=temperatures,
        throttling=throttling,
        throttle_counts=_counted({**jetson.read_over_current(probe), **processor.read_throttle_count(probe)}),
        packages=package_versions() if here else {},
    )


def _counted(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts that can be ones: a driver that answers nonsense must not keep a report from being written."""
    return {name: count for name, count in counts.items() if 0 <= count <= MOST_COUNTED}


def _cpus() -> int | None:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # no Linux
        return os.cpu_count()


def package_versions() -> dict[str, str]:
    """Versions of what figures may depend on, as far as it is installed, this package and Python included."""
    found = {name: version for name in PACKAGES if (version := _version(name))}
    return {"iwp-export": __version__, "python": platform.python_version(), **found}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def warnings(state: DeviceState, before: DeviceState | None = None) -> list[str]:
    """What makes a latency of this machine hard to repeat: a line each, with the command that mends it.

    nvidia-smi does not tell whether a card's clock is locked. Two states show that it moved.

    Args:
        state: of the machine, at the end of a measurement if there was one.
        before: at its beginning.
    """
    lines = [*_unlocked(state), *_moved(state, before), *_governor(state)]
    remedy = COOL_JETSON if state.is_jetson else COOL_CARD
    if state.throttling:
        lines.append(f"throttled now ({', '.join(state.throttling)}): {remedy}")
    if before is not None:
        rises = {name: count - before.throttle_counts.get(name, count) for name, count in state.throttle_counts.items()}
        lines += [
            f"slowed down {rise:,} times by {name} during the run: {remedy}" for name, rise in rises.items() if rise > 0
        ]
    return lines


def _unlocked(state: DeviceState) -> list[str]:
    clocks = {"GPU": state.gpu_clock, "memory": state.memory_clock}
    if state.is_jetson:
        clocks["CPU"] = state.cpu_clock
    moving = [f"{name} {span(clock)}" for name, clock in clocks.items() if clock is not None and clock.locked is False]
    remedy = LOCK_JETSON if state.is_jetson else LOCK_CARD
    return [f"clocks are not locked ({'; '.join(moving)}): {remedy}"] if moving else []


def _moved(state: DeviceState, before: DeviceState | None) -> list[str]:
    after, first = state.gpu_clock, before.gpu_clock if before else None
    if after is None or first is None or after.locked is not None or after.now is None or first.now is None:
        return []
    if after.now == first.now:
        return []
    return [f"the GPU's clock moved from {first.now:,.0f} to {after.now:,.0f} MHz during the run: {LOCK_CARD}"]


def _governor(state: DeviceState) -> list[str]:
    """A Jetson's governors stay what they are when its clocks are locked."""
    if state.is_jetson or state.governor in (None, STEADY) or (state.cpu_clock and state.cpu_clock.locked):
        return []
    return [f"the CPU's frequency follows its load (governor {state.governor}): {LOCK_CPU}"]


def span(clock: Clock) -> str:
    """The limits that a clock moves between."""
    return f"{clock.least or 0:,.0f} to {clock.greatest or 0:,.0f} MHz"
