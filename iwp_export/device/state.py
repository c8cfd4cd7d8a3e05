"""What a measurement depends on beside the artefact: clocks, power mode, throttling, versions."""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from iwp_export.device import jetson
from iwp_export.device.gpu import Clock, find_gpu, read_card
from iwp_export.device.machine import find, package_versions, read_number, read_text, run_tool

LOCK_JETSON = "sudo jetson_clocks"
LOCK_CARD = "sudo nvidia-smi -lgc MHZ"
LOCK_CPU = "sudo cpupower frequency-set -g performance"
COOL_JETSON = "cool the board and check its supply, or take a smaller power mode: sudo nvpmodel -m N"
COOL_CARD = f"cool the card, or lock a clock that it holds: {LOCK_CARD}"
STEADY = "performance"
"""The governor that leaves a CPU at its highest frequency."""
MOST_COUNTED = 2**31 - 1
"""What a report holds of a count; a driver may answer nonsense."""
NAMES = {
    "l4t": "L4T",
    "gpu": "GPU",
    "gpus": "GPUs",
    "cuda": "CUDA",
    "gpu_clock": "GPU clock",
    "cpu": "CPU",
    "cpus": "usable CPUs",
    "cpu_clock": "CPU clock",
    "power_limit": "power limit, W",
    "throttle_counts": "slowed down since it started",
}
"""How fields are called for people, where it is not by their name."""


@dataclass(frozen=True)
class DeviceState:
    """A machine at one moment. None is what could not be read; nothing is guessed.

    Attributes:
        system: the distribution and its kernel.
        board: as its maker names it, where the device tree does.
        jetpack, l4t: versions of NVIDIA's software for Jetson.
        gpu: name of the first GPU. `gpus`: how many there are.
        driver, cuda: versions; `cuda` is the newest that the driver runs.
        gpu_clock, memory_clock, cpu_clock: in MHz, and whether they are locked.
        cpu: the processor's name. `cpus`: how many this process may use.
        governor: how Linux chooses the CPUs' frequencies.
        power_mode: nvpmodel's name of it on a Jetson. `power_limit`: of a GPU card, in watts.
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
    gpu_clock: Clock | None = None
    memory_clock: Clock | None = None
    cpu: str | None = None
    cpus: int | None = None
    cpu_clock: Clock | None = None
    governor: str | None = None
    power_mode: str | None = None
    power_limit: float | None = None
    throttling: tuple[str, ...] | None = None
    throttle_counts: Mapping[str, int] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_jetson(self) -> bool:
        """Whether this is a Jetson."""
        return self.l4t is not None or "jetson" in (self.board or "").lower()


def read_state(root: Path = Path("/")) -> DeviceState:
    """The state of this machine now. It takes tens of milliseconds: programs are run.

    Args:
        root: the folder that stands for `/` in a test: files of a Jetson and of Linux's processors are read there.
    """
    gpu = find_gpu()
    found: dict[str, Any] = {"gpu": gpu.name, "cuda": gpu.cuda_version} if gpu else {}
    found |= read_card() | jetson.read_jetson(root)
    counts = {**found.pop("over_current", {}), **_heat_count(root)}
    governors = {read_text(path) for path in find(root, "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor")}
    return DeviceState(
        system=_system(),
        board=read_text(root / "proc/device-tree/model"),
        cpu=_cpu(),
        cpus=len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count(),
        cpu_clock=_cpu_clock(),
        governor=", ".join(sorted(filter(None, governors))) or None,
        throttle_counts={name: count for name, count in counts.items() if 0 <= count <= MOST_COUNTED},
        packages=package_versions(),
        **found,
    )


def _system() -> str:
    name = ""
    with contextlib.suppress(OSError):
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    return ", ".join(filter(None, (name, f"{platform.system()} {platform.release()}")))


def _cpu() -> str | None:
    """The processor's name: of /proc/cpuinfo, which ARM leaves without one, else as lscpu decodes it."""
    for text in (read_text(Path("/proc/cpuinfo")), run_tool("lscpu")):
        if name := re.search(r"^model name\s*:\s*(.+)$", text or "", re.M | re.I):
            return name[1].strip()
    return None


def _cpu_clock() -> Clock | None:
    try:
        return jetson.joint_clock([(each.current, each.min, each.max) for each in psutil.cpu_freq(percpu=True)])
    except (AttributeError, NotImplementedError, OSError, ValueError):  # psutil's answers for machines without it
        return None


def _heat_count(root: Path) -> dict[str, int]:
    """How often the CPUs were slowed down by heat since the machine started, where they count it."""
    paths = find(root, "/sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")
    counts = [count for path in paths if (count := read_number(path)) is not None]
    return {"CPU heat": sum(counts)} if counts else {}


def warnings(state: DeviceState, before: DeviceState | None = None) -> list[str]:
    """What makes a latency of this machine hard to repeat: a line each, with the command that mends it.

    Args:
        state: of the machine, at the end of a measurement if there was one.
        before: at its beginning.
    """
    clocks = {"GPU": state.gpu_clock, "memory": state.memory_clock, "CPU": state.cpu_clock if state.is_jetson else None}
    moving = [f"{name} {_span(clock)}" for name, clock in clocks.items() if clock and clock.locked is False]
    lock, cool = (LOCK_JETSON, COOL_JETSON) if state.is_jetson else (LOCK_CARD, COOL_CARD)
    lines = [f"clocks are not locked ({'; '.join(moving)}): {lock}"] if moving else []
    if state.gpu and not state.is_jetson and state.driver is None:
        lines.append("clocks and throttling of the GPU are unknown: pip install 'iwp-export[gpu]'")
    if not (state.is_jetson or state.governor in (None, STEADY) or (state.cpu_clock and state.cpu_clock.locked)):
        lines.append(f"the CPU's frequency follows its load (governor {state.governor}): {LOCK_CPU}")
    if state.throttling:
        lines.append(f"throttled now ({', '.join(state.throttling)}): {cool}")
    if before is None:
        return lines
    first, last = before.gpu_clock, state.gpu_clock
    if first and last and last.locked is None and first.now and last.now and first.now != last.now:
        lines.append(f"the GPU's clock moved from {first.now:,.0f} to {last.now:,.0f} MHz during the run: {lock}")
    for name, count in state.throttle_counts.items():
        if (rise := count - before.throttle_counts.get(name, count)) > 0:
            lines.append(f"slowed down {rise:,} times by {name} during the run: {cool}")
    return lines


def facts(state: DeviceState) -> list[tuple[str, str]]:
    """Names and values of what is known, for a view."""
    known = {name: value for name, value in vars(state).items() if value is not None and value != {}}
    return [(NAMES.get(name, name.replace("_", " ")), _said(value)) for name, value in known.items()]


def _said(value: object) -> str:
    if isinstance(value, Clock):
        now = f"{value.now:,.0f} MHz" if value.now is not None else ""
        most = f"at most {value.greatest:,.0f} MHz, " if value.greatest else ""
        locks = {True: "locked", False: f"not locked, {_span(value)}", None: f"{most}lock unknown"}
        return ", ".join(filter(None, (now, locks[value.locked])))
    if isinstance(value, Mapping):
        return ", ".join(
            f"{name} {each:,}" if isinstance(each, int) else f"{name} {each}" for name, each in value.items()
        )
    return (", ".join(value) or "none now") if isinstance(value, tuple) else str(value)


def _span(clock: Clock) -> str:
    return f"{clock.least or 0:,.0f} to {clock.greatest or 0:,.0f} MHz"
