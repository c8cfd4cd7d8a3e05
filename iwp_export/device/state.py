"""What a measurement depends on beside the artefact: clocks, power mode, throttling, versions.

A card's are asked from NVML. A Jetson's are in files of Jetson Linux (L4T) and told by nvpmodel: NVIDIA's Jetson Linux
Developer Guide, "Platform Power and Performance" (R36 for Orin with JetPack 6, R38 and R39 for Thor and for Orin with
JetPack 7), and public recordings that the tests name.
"""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from iwp_export.device.gpu import ask_nvml, find_gpu
from iwp_export.device.machine import JETSON, find, package_versions, read_number, read_text, run_tool

LOCK_JETSON = "sudo jetson_clocks"
LOCK_CARD = "sudo nvidia-smi -lgc MHZ"
LOCK_CPU = "sudo cpupower frequency-set -g performance"
COOL_JETSON = "cool the board and check its supply, or take a smaller power mode: sudo nvpmodel -m N"
COOL_CARD = f"cool the card, or lock a clock that it holds: {LOCK_CARD}"
STEADY = "performance"
"""The governor that leaves a CPU at its highest frequency."""

SM = 1
"""NVML_CLOCK_SM."""
SLOWED = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "heat, by software",
    0x40: "heat, by hardware",
    0x80: "power brake",
}
"""Bits of NVML's reasons for lower clocks (nvmlClocksEventReason...). Others, such as an idle card, are harmless."""

GPU_CLOCKS = ("/sys/class/devfreq/gpu-gpc-*", "/sys/class/devfreq/*.gpu", "/sys/class/devfreq/*.g[abpv]*b")
"""Thor's graphics clusters; Orin's GPU; the same by the chip's name (`17000000.ga10b`, `17000000.gv11b`)."""
HZ = 1e6
"""devfreq counts in Hz."""
ALERTS = re.compile(r".*-throttle-alert|hot-surface-alert|cpufreq-.*|devfreq-.*gpu.*")
"""Cooling devices whose state is above 0 while they slow something down. `pwm-fan` is a fan."""
OVER_CURRENT = {1: "under-voltage", 2: "average over-current", 3: "instantaneous over-current"}
"""Events that the chip answers with lower clocks, by their number in `ocN_event_cnt`."""
MOST_COUNTED = 2**31 - 1
"""What a report holds of a count; a driver may answer nonsense."""


@dataclass(frozen=True)
class Clock:
    """A clock in MHz; None is what cannot be read.

    Attributes:
        now: at this moment; of several of a kind the highest.
        least, greatest: the limits that it may move between, which a power mode sets too; of several the widest.
        locked: whether it is held: its limits are equal, of several each one's.
    """

    now: float | None = None
    least: float | None = None
    greatest: float | None = None
    locked: bool | None = None

    @classmethod
    def of(cls, readings: Sequence[Sequence[float]]) -> Clock | None:
        """One clock of several, each with its frequency now and its limits; 0 is unknown. None if nothing is known."""
        now = [first for first, _, _ in readings if first > 0]
        limits = [(low, high) for _, low, high in readings if low > 0 and high > 0]
        if not limits:
            return cls(max(now)) if now else None
        lows, highs = zip(*limits, strict=True)
        return cls(max(now, default=None), min(lows), max(highs), lows == highs)

    @property
    def span(self) -> str:
        """Its limits."""
        return f"{self.least or 0:,.0f} to {self.greatest or 0:,.0f} MHz"

    def __str__(self) -> str:
        now = f"{self.now:,.0f} MHz" if self.now is not None else ""
        most = f"at most {self.greatest:,.0f} MHz, " if self.greatest else ""
        locks = {True: "locked", False: f"not locked, {self.span}", None: f"{most}lock unknown"}
        return ", ".join(filter(None, (now, locks[self.locked])))


@dataclass(frozen=True)
class DeviceState:
    """A machine at one moment. None is what could not be read; nothing is guessed.

    Attributes:
        board: as its maker names it, where the device tree does.
        gpu: the first one's name. `cuda`: the newest that the driver runs. `cpus`: how many this process may use.
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
    driver: str | None = None
    cuda: str | None = None
    gpu_clock: Clock | None = None
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
    gpu, found = find_gpu(), dict[str, Any]()
    for told in ({"gpu": gpu.name, "cuda": gpu.cuda_version} if gpu else {}, _card(), _jetson(root)):
        found |= {name: value for name, value in told.items() if value is not None}
    governors = {read_text(path) for path in find(root, "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor")}
    return DeviceState(
        system=_system(),
        board=read_text(root / "proc/device-tree/model"),
        cpu=_cpu(),
        cpus=len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count(),
        cpu_clock=_cpu_clock(),
        governor=", ".join(sorted(filter(None, governors))) or None,
        throttle_counts=_throttle_counts(root),
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
        return Clock.of([(each.current, each.min, each.max) for each in psutil.cpu_freq(percpu=True)])
    except (AttributeError, NotImplementedError, OSError, ValueError):  # psutil's answers for machines without it
        return None


def _throttle_counts(root: Path) -> dict[str, int]:
    """How often a Jetson's supply hit its limits, and the CPUs were slowed down by heat, where that is counted."""
    chips = [path for path in find(root, "/sys/class/hwmon/hwmon*") if _text(path / "name").startswith("soctherm")]
    counts = {name: read_number(chip / f"oc{n}_event_cnt") for chip in chips for n, name in OVER_CURRENT.items()}
    if cpus := find(root, "/sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"):
        counts["CPU heat"] = sum(read_number(path) or 0 for path in cpus)
    return {name: count for name, count in counts.items() if count is not None and 0 <= count <= MOST_COUNTED}


def _card() -> dict[str, Any]:
    """What NVML tells of the first GPU. It does not tell whether clocks are locked."""
    card = ask_nvml("nvmlDeviceGetHandleByIndex", 0)
    if card is None:
        return {}
    limit = ask_nvml("nvmlDeviceGetEnforcedPowerLimit", card)
    reasons = ask_nvml("nvmlDeviceGetCurrentClocksThrottleReasons", card)
    now, most = (ask_nvml(call, card, SM) for call in ("nvmlDeviceGetClockInfo", "nvmlDeviceGetMaxClockInfo"))
    return {
        "driver": ask_nvml("nvmlSystemGetDriverVersion"),
        "gpu_clock": Clock(now, greatest=most) if now or most else None,
        "power_limit": limit and limit / 1000,
        "throttling": None if reasons is None else tuple(name for bit, name in SLOWED.items() if reasons & bit),
    }


def _jetson(root: Path) -> dict[str, Any]:
    """What a Jetson's software tells; nothing on another machine."""
    l4t = re.match(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", _text(root / JETSON.relative_to("/")))
    if l4t is None:
        return {}
    package = run_tool("dpkg-query", "--showformat=${Version}", "--show", "nvidia-jetpack")  # containers have none
    mode = re.search(r"NV Power Mode:\s*(\S+)", run_tool("nvpmodel", "-q") or "")
    return {
        "l4t": f"{l4t[1]}.{l4t[2]}",
        "jetpack": package and package.partition("+")[0],
        "power_mode": mode and mode[1],
        "gpu_clock": _gpu_clock(root),
        "throttling": _throttling(root),
    }


def _gpu_clock(root: Path) -> Clock | None:
    """The clock of the folders that the first of the patterns finds."""
    folders = next((found for pattern in GPU_CLOCKS if (found := find(root, pattern))), [])
    names = ("cur_freq", "min_freq", "max_freq")
    return Clock.of([[(read_number(folder / name) or 0) / HZ for name in names] for folder in folders])


def _throttling(root: Path) -> tuple[str, ...] | None:
    """Cooling devices that slow something down now; None if there are none to ask."""
    states = {
        kind: state
        for folder in find(root, "/sys/class/thermal/cooling_device*")
        if ALERTS.fullmatch(kind := _text(folder / "type")) and (state := read_number(folder / "cur_state")) is not None
    }
    return tuple(f"{kind} at step {state}" for kind, state in states.items() if state) if states else None


def _text(path: Path) -> str:
    return read_text(path) or ""


def warnings(state: DeviceState, before: DeviceState | None = None) -> list[str]:
    """What makes a latency of this machine hard to repeat: a line each, with the command that mends it.

    Args:
        state: of the machine, at the end of a measurement if there was one.
        before: at its beginning.
    """
    clocks = {"GPU": state.gpu_clock, "CPU": state.cpu_clock if state.is_jetson else None}
    moving = [f"{name} {clock.span}" for name, clock in clocks.items() if clock and clock.locked is False]
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
    known = {name.replace("_", " "): value for name, value in vars(state).items() if value is not None and value != {}}
    return [(re.sub(r"\b([cg]pu|cuda|l4t)", lambda word: word[0].upper(), name), _said(known[name])) for name in known]


def _said(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    if isinstance(value, tuple):
        return ", ".join(value) or "none now"
    return f"{value:g} W" if isinstance(value, float) else str(value)
