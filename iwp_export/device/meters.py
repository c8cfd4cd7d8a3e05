"""Meters of power: a Jetson's INA3221 in sysfs, a GPU card's counter of energy in NVML. Joules come from these alone.

hwmon gives millivolts in `inN_input` and milliamperes in `currN_input` (the kernel's documentation of ina3221). Rails
are those of NVIDIA's Jetson Linux Developer Guide, "Platform Power and Performance".
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from iwp_export.device.gpu import ask_nvml
from iwp_export.device.machine import find, read_number, read_text

INTERVAL = 0.02
"""Seconds between readings of power: shorter than any phase worth measuring, and long beside a read over I2C."""
COUNTER = "nvmlDeviceGetTotalEnergyConsumption"
"""NVML's counter of energy, in millijoules."""
CHANNELS = (1, 2, 3)
"""Of INA3221. `in4` to `in7` are voltages of the shunts and their sum, which are no rails."""
MODULES = (
    ("VDD_IN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
)
"""Rails whose sum is what a module draws: Orin Nano and Orin NX, AGX Orin, Thor. AGX Orin's VDDQ_VDD2_1V8AO is fed by
VIN_SYS_5V0 and must not be added to it."""


@dataclass
class Energy:
    """What a meter measured; it is filled in when the block under `measure` ends, or fails.

    Attributes:
        joules: energy of the whole block, what the machine draws at rest included; None if a reading failed.
        problem: why there are no joules; empty if there are.
    """

    joules: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class PowerMeter:
    """Something that measures power or energy.

    Attributes:
        name: what is measured, such as `VDD_IN` or `GPU 0`.
        source: what measures it and where it is read.
        scope: what the energy is of: `module` (a Jetson without its carrier board) or `GPU`.
        read: one reading: watts, or joules since some moment. Raises OSError or ValueError if there is none.
        counts: whether `read` gives joules and not watts.
    """

    name: str
    source: str
    scope: str
    read: Callable[[], float] = field(repr=False, compare=False)
    counts: bool = False

    @contextmanager
    def measure(self) -> Iterator[Energy]:
        """Measure what runs in the `with` block; read the `Energy` after it.

        A thread reads a counter before and after the block, power also meanwhile, which is summed up over time.
        """
        energy, started, stop = Energy(), threading.Event(), threading.Event()
        readings: list[tuple[float, float]] = []

        def take() -> None:
            before = time.perf_counter()
            value = self.read()
            readings.append(((before + time.perf_counter()) / 2, value))  # a read over I2C takes time

        def watch() -> None:
            try:
                take()
                while not stop.is_set():
                    started.set()
                    stop.wait(None if self.counts else INTERVAL)
                    take()
            except (OSError, ValueError) as error:
                energy.problem = str(error) or type(error).__name__
            started.set()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        started.wait()
        start = time.perf_counter()
        try:
            yield energy
        finally:
            seconds = time.perf_counter() - start
            stop.set()
            thread.join()
            if not energy.problem:
                counted = readings[-1][1] - readings[0][1]
                energy.joules = counted if self.counts else mean_power(readings) * seconds


def mean_power(readings: Sequence[tuple[float, float]]) -> float:
    """Watts between the first and the last reading (seconds, watts), by the trapezoid rule.

    These lie outside of the block that is measured, by as long as a reading takes.
    """
    seconds = readings[-1][0] - readings[0][0]
    pairs = itertools.pairwise(readings)
    joules = sum((later - earlier) * (first + second) / 2 for (earlier, first), (later, second) in pairs)
    return joules / seconds if seconds > 0 else readings[0][1]


def find_meters(root: Path = Path("/")) -> list[PowerMeter]:
    """The meters of this machine: a Jetson's module, else its GPU cards that count energy, as they do since Volta.

    Args:
        root: the folder that stands for `/` in a test.
    """
    rails = _rails(root)
    for names in MODULES:
        if rails.keys() >= set(names):
            files = [rails[name] for name in names]
            source = f"INA3221, {', '.join(str(volts) for volts, _ in files)} and the currents beside"
            return [PowerMeter(" + ".join(names), source, "module", partial(_watts, files))]
    cards = [ask_nvml("nvmlDeviceGetHandleByIndex", index) for index in range(ask_nvml("nvmlDeviceGetCount") or 0)]
    return [
        PowerMeter(f"GPU {index}", "NVML's counter of energy", "GPU", partial(_joules, card), counts=True)
        for index, card in enumerate(cards)
        if ask_nvml(COUNTER, card) is not None
    ]


def _rails(root: Path) -> dict[str, tuple[Path, Path]]:
    """Files of the millivolts and milliamperes of each rail of a Jetson."""
    return {
        label: (chip / f"in{channel}_input", chip / f"curr{channel}_input")
        for chip in find(root, "/sys/class/hwmon/hwmon*")
        if (read_text(chip / "name") or "").startswith("ina3221")
        for channel in CHANNELS
        if (label := read_text(chip / f"in{channel}_label")) and read_number(chip / f"in{channel}_enable") != 0
    }


def _watts(rails: Sequence[tuple[Path, Path]]) -> float:
    total = 0.0
    for volts, amperes in rails:
        millivolts, milliamperes = read_number(volts), read_number(amperes)
        if millivolts is None or milliamperes is None:
            raise ValueError(f"{volts} or {amperes.name} holds no number")
        total += millivolts * milliamperes / 1e6
    return total


def _joules(card: Any) -> float:
    counted = ask_nvml(COUNTER, card)
    if counted is None:
        raise ValueError("NVML no longer answers")
    return float(counted) / 1e3
