"""State of a Jetson, from files of Jetson Linux (L4T) and from nvpmodel.

Which files these are is in NVIDIA's Jetson Linux Developer Guide, "Platform Power and Performance" (R36 for Orin with
JetPack 6, R38 and R39 for Thor and for Orin with JetPack 7), and in public recordings that the tests name.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from iwp_export.device.clock import HZ, Clock, clock_of
from iwp_export.device.probe import Probe

RELEASE = "/etc/nv_tegra_release"
JETPACKS = {
    "36.3": "6.0",
    "36.4.0": "6.1",
    "36.4.2": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
    "39.2.2": "7.2.2",
}
"""JetPack of a release of Jetson Linux, from NVIDIA's JetPack archive, for machines without its package."""

GPU_CLOCKS = ("/sys/class/devfreq/gpu-gpc-*", "/sys/class/devfreq/*.gpu", "/sys/class/devfreq/*.g[abpv]*b")
"""Thor's graphics clusters; Orin's GPU; the same by the chip's name (`17000000.ga10b`, `17000000.gv11b`)."""
MEMORY_CLOCK = "/sys/class/devfreq/bwmgr"
"""Thor's memory controller. Orin's (`emc`) is in debugfs, which only root reads."""
EMC = "/sys/kernel/debug/bpmp/debug/clk/emc"

ALERTS = re.compile(r".*-throttle-alert|hot-surface-alert|cpufreq-.*|devfreq-.*gpu.*")
"""Cooling devices whose state is above 0 while they slow something down. `pwm-fan` is a fan."""
OVER_CURRENT = {1: "under-voltage", 2: "average over-current", 3: "instantaneous over-current"}
"""Events that the chip answers with lower clocks, by their number in `ocN_event_cnt`."""


def read_l4t(probe: Probe) -> str | None:
    """The release of Jetson Linux, such as `36.4.3`."""
    found = re.match(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", probe.text(RELEASE) or "")
    return f"{found[1]}.{found[2]}" if found else None


def read_jetpack(probe: Probe, l4t: str | None) -> str | None:
    """The version of JetPack: of its package, else the one that this release of Jetson Linux belongs to."""
    if l4t is None:
        return None
    version = probe.output("dpkg-query", "--showformat=${Version}", "--show", "nvidia-jetpack")
    if version:
        return version.partition("+")[0]
    return next((jetpack for release, jetpack in JETPACKS.items() if (l4t + ".").startswith(release + ".")), None)


def read_cuda(probe: Probe) -> str | None:
    """The toolkit's version, where JetPack installs it."""
    try:
        version = json.loads(probe.text("/usr/local/cuda/version.json") or "")["cuda"]["version"]
    except (ValueError, LookupError, TypeError):
        return None
    return version if isinstance(version, str) else None


def read_power_mode(probe: Probe) -> str | None:
    """The name of the power mode, such as `MAXN_SUPER` or `25W`."""
    found = re.search(r"NV Power Mode:\s*(\S+)", probe.output("nvpmodel", "-q") or "")
    return found[1] if found else None


def read_gpu_clock(probe: Probe) -> Clock | None:
    """Of the integrated GPU."""
    return _devfreq(probe, next((found for pattern in GPU_CLOCKS if (found := probe.find(pattern))), []))


def read_memory_clock(probe: Probe) -> Clock | None:
    """Of the memory; on Orin, only for root."""
    if (clock := _devfreq(probe, probe.find(MEMORY_CLOCK))) is not None:
        return clock
    now, least, greatest = (probe.number(f"{EMC}/{name}") for name in ("rate", "min_rate", "max_rate"))
    locked = probe.number(f"{EMC}/mrq_rate_locked")
    if now is None:
        return None
    clock = clock_of([now], [(least, greatest)], HZ) or Clock()
    return Clock(clock.now, clock.least, clock.greatest, None if locked is None else locked != 0)


def _devfreq(probe: Probe, folders: list[Path]) -> Clock | None:
    now = [probe.number(folder / "cur_freq") for folder in folders]
    limits = [(probe.number(folder / "min_freq"), probe.number(folder / "max_freq")) for folder in folders]
    return clock_of(now, limits, HZ)


def read_throttling(probe: Probe) -> tuple[str, ...] | None:
    """Cooling devices that slow something down now; None if there are none to ask."""
    found = [
        (kind, probe.number(folder / "cur_state"))
        for folder in probe.find("/sys/class/thermal/cooling_device*")
        if (kind := probe.text(folder / "type")) and ALERTS.fullmatch(kind)
    ]
    if not any(state is not None for _, state in found):
        return None
    return tuple(f"{kind} at step {state}" for kind, state in found if state)


def read_over_current(probe: Probe) -> dict[str, int]:
    """How often the supply's limits were hit since the machine started, by what happened."""
    counts = {}
    for folder in probe.find("/sys/class/hwmon/hwmon*"):
        if (probe.text(folder / "name") or "").startswith("soctherm"):
            for number, name in OVER_CURRENT.items():
                if (count := probe.number(folder / f"oc{number}_event_cnt")) is not None:
                    counts[name] = count
    return counts
