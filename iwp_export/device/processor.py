"""State of the processor and temperatures of the machine, from procfs and sysfs."""

from __future__ import annotations

import re

from iwp_export.device.clock import KHZ, Clock, clock_of
from iwp_export.device.probe import Probe

CPUFREQ = "/sys/devices/system/cpu/cpufreq/policy*"
THROTTLE_COUNTS = "/sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"
CHIPS = ("coretemp", "k10temp")
"""Sensors of Intel's and of AMD's processors, of which some machines have no thermal zone."""


def read_cpu(probe: Probe) -> str | None:
    """The processor's name: of /proc/cpuinfo, which ARM leaves without one, else as lscpu decodes it."""
    for text in (probe.text("/proc/cpuinfo"), probe.output("lscpu")):
        if found := re.search(r"^model name\s*:\s*(.+)$", text or "", re.M | re.I):
            return found[1].strip()
    return None


def read_cpu_clock(probe: Probe) -> Clock | None:
    """Of all CPUs together: locked only if each is."""
    policies = probe.find(CPUFREQ)
    now = [probe.number(policy / "scaling_cur_freq") for policy in policies]
    limits = [
        (probe.number(policy / "scaling_min_freq"), probe.number(policy / "scaling_max_freq")) for policy in policies
    ]
    return clock_of(now, limits, KHZ)


def read_governor(probe: Probe) -> str | None:
    """What chooses the CPUs' frequencies; several names are joined with commas."""
    found = {text for policy in probe.find(CPUFREQ) if (text := probe.text(policy / "scaling_governor"))}
    return ", ".join(sorted(found)) or None


def read_throttle_count(probe: Probe) -> dict[str, int]:
    """How often the CPUs were slowed down by heat since the machine started, where they count it."""
    counts = [count for path in probe.find(THROTTLE_COUNTS) if (count := probe.number(path)) is not None]
    return {"CPU heat": sum(counts)} if counts else {}


def read_temperatures(probe: Probe) -> dict[str, float]:
    """Temperatures in degrees Celsius by zone; one that is switched off, as Thor's idle GPU is, is left out."""
    found: dict[str, float] = {}
    for zone in probe.find("/sys/class/thermal/thermal_zone*"):
        name, value = probe.text(zone / "type"), probe.number(zone / "temp")
        if name and value is not None and value > 0:
            found.setdefault(name.removesuffix("-thermal"), value / 1000)
    for folder in probe.find("/sys/class/hwmon/hwmon*"):
        chip, value = probe.text(folder / "name"), probe.number(folder / "temp1_input")
        if chip in CHIPS and value is not None:
            found.setdefault(chip, value / 1000)
    return found


def read_system(probe: Probe) -> str | None:
    """Distribution and kernel."""
    name = re.search(r'^PRETTY_NAME="?([^"\n]+)', probe.text("/etc/os-release") or "", re.M)
    kernel = probe.text("/proc/sys/kernel/osrelease")
    parts = [name[1] if name else None, f"Linux {kernel}" if kernel else None]
    return ", ".join(part for part in parts if part) or None
