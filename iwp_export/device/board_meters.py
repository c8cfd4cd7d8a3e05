"""Power monitors on a Jetson: INA3221 on the module, INA238 on Thor's carrier board, read from sysfs.

hwmon gives millivolts in `inN_input` and milliamperes in `currN_input` (the kernel's documentation of ina3221);
`power1_input` of INA238 is in microwatts. JetPack 4 had iio devices: `rail_name_N`, `in_powerN_input` in milliwatts.
Rails are those of NVIDIA's Jetson Linux Developer Guide, "Platform Power and Performance".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iwp_export.device.metering import PowerMeter
from iwp_export.device.probe import Probe, read_text

INTERVAL = 0.02
"""Seconds: shorter than any phase worth measuring, and long beside the read itself, which goes over I2C."""
JTOP_INTERVAL = 0.5
"""Seconds between updates that jetson-stats' service is asked for; another client may have set others."""

HWMON = ("/sys/class/hwmon/hwmon*", "/sys/bus/i2c/drivers/ina3221*/*/hwmon/hwmon*", "/sys/bus/i2c/devices/*/hwmon/*")
IIO = ("/sys/bus/i2c/drivers/ina3221x/*/iio:device*", "/sys/bus/i2c/devices/*/iio:device*")
CHANNELS = (1, 2, 3)
"""Of INA3221. `in4` to `in7` are voltages of the shunts and their sum, which are no rails."""

SCOPES = {"VIN": "board", "VDD_IN": "module", "POM_5V_IN": "module"}
"""Rails through which all power goes: into a carrier board (Thor's developer kit), into a module (Orin Nano, Orin NX,
and Jetson Nano)."""
SUMS = (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"))
"""Rails of AGX Orin and of Thor, whose modules have no such rail: their sum is taken for the module.
AGX Orin's VDDQ_VDD2_1V8AO is fed by VIN_SYS_5V0 and must not be added to it."""


def board_meters(probe: Probe) -> list[PowerMeter]:
    """Meters of the board's rails, and of the module as the sum of its rails where no rail is the whole."""
    rails: dict[str, PowerMeter] = {}
    for folder in _folders(probe, HWMON):
        chip = (probe.text(folder / "name") or "").lower()
        if chip.startswith("ina3221"):
            for channel in CHANNELS:
                _add(rails, _ina3221(probe, folder, channel))
        elif chip.startswith("ina238"):
            _add(rails, _ina238(probe, folder))
    for folder in _folders(probe, IIO):
        for channel in range(len(CHANNELS)):
            _add(rails, _iio(probe, folder, channel))
    for names in SUMS:
        if all(name in rails for name in names) and not any(name in rails for name in SCOPES if name != "VIN"):
            _add(rails, _sum([rails[name] for name in names]))
    return list(rails.values())


def _folders(probe: Probe, patterns: tuple[str, ...]) -> list[Path]:
    """Folders of one pattern: the others lead to the same devices."""
    return next((found for pattern in patterns if (found := probe.find(pattern))), [])


def _add(rails: dict[str, PowerMeter], meter: PowerMeter | None) -> None:
    if meter is not None:
        rails.setdefault(meter.name, meter)


def _ina3221(probe: Probe, folder: Path, channel: int) -> PowerMeter | None:
    label = probe.text(folder / f"in{channel}_label")
    if not label or label == "NC" or probe.number(folder / f"in{channel}_enable") == 0:
        return None
    volts, amperes = folder / f"in{channel}_input", folder / f"curr{channel}_input"
    if probe.text(volts) is None or probe.text(amperes) is None:
        return None

    def watts() -> float:
        return _number(volts) * _number(amperes) / 1e6

    return _meter(label, f"INA3221, {volts} and {amperes.name}", watts)


def _ina238(probe: Probe, folder: Path) -> PowerMeter | None:
    """The carrier board's input. The chip has one channel and no label; NVIDIA's tegrastats calls it VIN."""
    power = folder / "power1_input"
    if probe.text(power) is None:
        return None
    return _meter("VIN", f"INA238, {power}", lambda: _number(power) / 1e6)


def _iio(probe: Probe, folder: Path, channel: int) -> PowerMeter | None:
    label, power = probe.text(folder / f"rail_name_{channel}"), folder / f"in_power{channel}_input"
    if not label or probe.text(power) is None:
        return None
    return _meter(label, f"INA3221, {power}", lambda: _number(power) / 1e3)


def _meter(label: str, source: str, watts: Callable[[], float]) -> PowerMeter:
    return PowerMeter(label, source, SCOPES.get(label, "part"), watts, INTERVAL)


def _sum(rails: list[PowerMeter]) -> PowerMeter:
    name = " + ".join(rail.name for rail in rails)
    return PowerMeter(
        name, "INA3221, the sum of the rails", "module", lambda: sum(rail.read() for rail in rails), INTERVAL
    )


def _number(path: Path) -> float:
    """What a file of sysfs holds; some drivers write the unit behind it.

    Raises:
        OSError, ValueError: it cannot be read, or holds no number.
    """
    words = read_text(path).split()
    if not words:
        raise ValueError(f"{path} is empty")
    return float(words[0])


def jtop_meters(probe: Probe, module: Any = None) -> list[PowerMeter]:
    """The board's total as the service of jetson-stats gives it; none where the service does not run.

    Args:
        probe: only a real machine has a service.
        module: `jtop`, imported if it is installed.
    """
    if module is None:
        if not probe.is_this_machine or probe.text("/etc/nv_tegra_release") is None:
            return []
        try:
            module = importlib.import_module("jtop")
        except ImportError:
            return []
    try:
        service = module.jtop(interval=JTOP_INTERVAL)
        service.start()
        name, interval = str(service.power["tot"].get("name") or "all rails"), float(service.interval)
    except Exception:  # jetson-stats raises errors of its own where its service is missing, old or forbidden
        return []

    def watts() -> float:
        try:
            if service.ok(spin=True):
                return float(service.power["tot"]["power"]) / 1e3
        except Exception as error:  # its own errors, or an entry that is gone
            raise OSError(f"the service of jetson-stats: {type(error).__name__} {error}") from error
        raise OSError("the service of jetson-stats has stopped")

    return [PowerMeter(name, "jetson-stats' service", SCOPES.get(name, "module"), watts, interval)]
