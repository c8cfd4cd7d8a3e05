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
from pathlib import Path

from iwp_export.device.gpu import Nvml, open_nvml
from iwp_export.device.machine import find, read_number, read_text

INTERVAL = 0.02
"""Seconds between readings of power: shorter than any phase worth measuring, and long beside a read over I2C."""
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
        problem: why it cannot be read; empty if it can.
    """

    name: str
    source: str
    scope: str
    read: Callable[[], float] = field(repr=False, compare=False)
    counts: bool = False
    problem: str = ""

    @contextmanager
    def measure(self) -> Iterator[Energy]:
        """Measure what runs in the `with` block; read the `Energy` after it.

        A counter is read before and after the block; power also from a thread, and is summed up over time.
        """
        energy, stop = Energy(problem=self.problem), threading.Event()
        readings: list[tuple[float, float]] = []

        def take() -> None:
            before = time.perf_counter()
            try:
                value = self.read()
            except (OSError, ValueError) as error:
                energy.problem = f"{self.name} could not be read throughout: {error}"
                return
            readings.append(((before + time.perf_counter()) / 2, value))  # a read over I2C takes time

        def watch() -> None:
            while not energy.problem and not stop.wait(None if self.counts else INTERVAL):
                take()

        take()
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        start = time.perf_counter()
        try:
            yield energy
        finally:
            seconds = time.perf_counter() - start
            stop.set()
            thread.join()
            take()
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
    """The meters of this machine: a Jetson's module, or its GPU cards.

    Args:
        root: the folder that stands for `/` in a test.
    """
    rails = _rails(root)
    names = next((names for names in MODULES if rails.keys() >= set(names)), ())
    if names:
        sources = "; ".join(f"{volts} and {amperes.name}" for volts, amperes in map(rails.__getitem__, names))
        return [
            PowerMeter(
                " + ".join(names), f"INA3221, {sources}", "module", lambda: sum(_watts(*rails[name]) for name in names)
            )
        ]
    nvml = open_nvml()  # a Jetson's has no counter
    return [_card(nvml, index) for index in range(len(nvml.handles))] if nvml else []


def _rails(root: Path) -> dict[str, tuple[Path, Path]]:
    """Files of the millivolts and milliamperes of each rail of a Jetson."""
    chips = [
        path for path in find(root, "/sys/class/hwmon/hwmon*") if (read_text(path / "name") or "").startswith("ina3221")
    ]
    return {
        label: (chip / f"in{channel}_input", chip / f"curr{channel}_input")
        for chip in chips
        for channel in CHANNELS
        if (label := read_text(chip / f"in{channel}_label")) and read_number(chip / f"in{channel}_enable") != 0
    }


def _watts(volts: Path, amperes: Path) -> float:
    millivolts, milliamperes = read_number(volts), read_number(amperes)
    if millivolts is None or milliamperes is None:
        raise ValueError(f"{volts} or {amperes.name} holds no number")
    return millivolts * milliamperes / 1e6


def _card(nvml: Nvml, index: int) -> PowerMeter:
    """A card's counter of energy in millijoules, which cards since Volta have."""
    call = ("nvmlDeviceGetTotalEnergyConsumption", nvml.handles[index])

    def joules() -> float:
        counted = nvml.ask(*call)
        if counted is None:
            raise ValueError("NVML no longer answers")
        return float(counted) / 1e3

    problem = "this GPU has no counter of energy" if nvml.ask(*call) is None else ""
    return PowerMeter(f"GPU {index}", "NVML's counter of energy", "GPU", joules, counts=True, problem=problem)
