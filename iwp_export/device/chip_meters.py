"""Meters that chips have themselves: NVIDIA's GPUs through NVML or nvidia-smi, processors through RAPL."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from iwp_export.device.metering import PowerMeter
from iwp_export.device.probe import Probe, read_text

COUNTER_INTERVAL = 10.0
"""Seconds between readings of a counter of energy, so that none starts again unseen: RAPL takes minutes for that."""
NVML_INTERVAL = 0.05
"""Seconds: NVML gives the mean power of the last 25 ms to 1 s, by the card."""
SMI_INTERVAL = 0.5
"""Seconds: each reading starts a process."""
SMI_POWER = ("nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits", "-i")
RAPL = "/sys/class/powercap/intel-rapl:*"
"""Intel's and AMD's processors alike. Zones of a package (`core`, `dram`) have one number more."""


def nvml_meters(probe: Probe, module: Any = None) -> list[PowerMeter]:
    """Meters of GPU cards through NVML; none where nvidia-ml-py or a driver is missing.

    Args:
        probe: only a real machine has a driver.
        module: `pynvml`, imported if it is installed.
    """
    if module is None:
        if not probe.is_this_machine:
            return []
        try:
            module = importlib.import_module("pynvml")
        except ImportError:
            return []
    try:
        module.nvmlInit()
        handles = [module.nvmlDeviceGetHandleByIndex(index) for index in range(module.nvmlDeviceGetCount())]
    except module.NVMLError:
        return []
    return [meter for index, handle in enumerate(handles) if (meter := _nvml_meter(module, index, handle))]


def _nvml_meter(module: Any, index: int, handle: Any) -> PowerMeter | None:
    """The counter of energy, which cards since Volta have, else power."""

    def ask(call: Any) -> float:
        try:
            return float(call(handle)) / 1e3  # millijoules, milliwatts
        except module.NVMLError as error:
            raise OSError(f"NVML: {error}") from error

    name = f"GPU {index}"
    try:
        ask(module.nvmlDeviceGetTotalEnergyConsumption)
        call = module.nvmlDeviceGetTotalEnergyConsumption
        return PowerMeter(name, "NVML's counter of energy", "GPU", lambda: ask(call), COUNTER_INTERVAL, counts=True)
    except OSError:
        pass
    try:
        ask(module.nvmlDeviceGetPowerUsage)
    except OSError:
        return None
    return PowerMeter(name, "NVML's power", "GPU", lambda: ask(module.nvmlDeviceGetPowerUsage), NVML_INTERVAL)


def smi_meters(probe: Probe) -> list[PowerMeter]:
    """The first GPU's power as nvidia-smi prints it; none where it prints none, as on JetPack 6."""

    def watts() -> float:
        output, problem = probe.run([*SMI_POWER, "0"])
        if problem:
            raise OSError(f"nvidia-smi: {problem}")
        return float(output)

    try:
        watts()
    except (OSError, ValueError):
        return []
    source = "nvidia-smi's power; nvidia-ml-py would give a counter of energy"
    return [PowerMeter("GPU 0", source, "GPU", watts, SMI_INTERVAL)]


def rapl_meters(probe: Probe) -> list[PowerMeter]:
    """Counters of energy of processors and of their parts."""
    return [meter for zone in probe.find(RAPL) if (meter := _rapl_meter(probe, zone))]


def _rapl_meter(probe: Probe, zone: Path) -> PowerMeter | None:
    name, counter = probe.text(zone / "name"), zone / "energy_uj"
    if not name or not counter.exists():
        return None
    parent = probe.text(zone.parent / zone.name.rpartition(":")[0] / "name")
    scope = "board" if name == "psys" else "CPU" if name.startswith("package") else "part"
    if scope == "part" and parent:
        name = f"{parent} {name}"
    top = probe.number(zone / "max_energy_range_uj")
    problem = ""
    try:
        _joules(counter)
    except PermissionError:
        problem = f"the kernel shows {counter} to root alone: sudo chmod a+r {counter}"
    except (OSError, ValueError, OverflowError) as error:
        problem = str(error)
    return PowerMeter(
        name,
        f"RAPL, {counter}",
        scope,
        lambda: _joules(counter),
        COUNTER_INTERVAL,
        counts=True,
        wraps_at=top / 1e6 if top else None,
        problem=problem,
    )


def _joules(counter: Path) -> float:
    """Raises OSError or ValueError if it cannot be read."""
    return int(read_text(counter)) / 1e6
