"""State of a Jetson, from files of Jetson Linux (L4T) and from nvpmodel.

Which files these are is in NVIDIA's Jetson Linux Developer Guide, "Platform Power and Performance" (R36 for Orin with
JetPack 6, R38 and R39 for Thor and for Orin with JetPack 7), and in public recordings that the tests name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iwp_export.device.gpu import Clock
from iwp_export.device.machine import JETSON, find, read_number, read_text, run_tool

GPU_CLOCKS = ("/sys/class/devfreq/gpu-gpc-*", "/sys/class/devfreq/*.gpu", "/sys/class/devfreq/*.g[abpv]*b")
"""Thor's graphics clusters; Orin's GPU; the same by the chip's name (`17000000.ga10b`, `17000000.gv11b`)."""
MEMORY_CLOCK = "/sys/class/devfreq/bwmgr"
"""Thor's memory controller. Orin's is in debugfs, which only root reads."""
HZ = 1e6
"""devfreq counts in Hz."""

ALERTS = re.compile(r".*-throttle-alert|hot-surface-alert|cpufreq-.*|devfreq-.*gpu.*")
"""Cooling devices whose state is above 0 while they slow something down. `pwm-fan` is a fan."""
OVER_CURRENT = {1: "under-voltage", 2: "average over-current", 3: "instantaneous over-current"}
"""Events that the chip answers with lower clocks, by their number in `ocN_event_cnt`."""


def read_jetson(root: Path) -> dict[str, Any]:
    """Fields of `DeviceState` that a Jetson's software tells, and `over_current`; none on another machine.

    Args:
        root: the folder that stands for `/`.
    """
    release = read_text(root / JETSON.relative_to("/")) or ""
    l4t = re.match(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", release)
    if l4t is None:
        return {}
    package = run_tool("dpkg-query", "--showformat=${Version}", "--show", "nvidia-jetpack")  # containers have none
    mode = re.search(r"NV Power Mode:\s*(\S+)", run_tool("nvpmodel", "-q") or "")
    found = {
        "l4t": f"{l4t[1]}.{l4t[2]}",
        "jetpack": package and package.partition("+")[0],
        "power_mode": mode and mode[1],
        "gpu_clock": _devfreq(next((found for pattern in GPU_CLOCKS if (found := find(root, pattern))), [])),
        "memory_clock": _devfreq(find(root, MEMORY_CLOCK)),
        "throttling": _throttling(root),
        "over_current": _over_current(root),
    }
    return {name: value for name, value in found.items() if value is not None}


def _devfreq(folders: Sequence[Path]) -> Clock | None:
    names = ("cur_freq", "min_freq", "max_freq")
    return joint_clock([[(read_number(folder / name) or 0) / HZ for name in names] for folder in folders])


def joint_clock(readings: Sequence[Sequence[float]]) -> Clock | None:
    """One clock of several devices, each with its frequency now and its limits in MHz; 0 is unknown.

    The highest is taken, and the widest limits; it is locked only if each is. None if nothing is known.
    """
    now = [first for first, _, _ in readings if first > 0]
    limits = [(low, high) for _, low, high in readings if low > 0 and high > 0]
    if not now and not limits:
        return None
    least, greatest = (min(low for low, _ in limits), max(high for _, high in limits)) if limits else (None, None)
    locked = all(low == high for low, high in limits) if limits else None
    return Clock(max(now, default=None), least, greatest, locked)


def _throttling(root: Path) -> tuple[str, ...] | None:
    """Cooling devices that slow something down now; None if there are none to ask."""
    found = [
        (kind, read_number(folder / "cur_state"))
        for folder in find(root, "/sys/class/thermal/cooling_device*")
        if (kind := read_text(folder / "type")) and ALERTS.fullmatch(kind)
    ]
    if not any(state is not None for _, state in found):
        return None
    return tuple(f"{kind} at step {state}" for kind, state in found if state)


def _over_current(root: Path) -> dict[str, int]:
    """How often the supply's limits were hit since the machine started, by what happened."""
    chips = [
        path for path in find(root, "/sys/class/hwmon/hwmon*") if (read_text(path / "name") or "")[:8] == "soctherm"
    ]
    counts = {name: read_number(chip / f"oc{n}_event_cnt") for chip in chips for n, name in OVER_CURRENT.items()}
    return {name: count for name, count in counts.items() if count is not None}
