"""A meter read from a thread while something runs: watts are summed up over time, counters of energy are subtracted."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

Reading = tuple[float, float]
"""A time in seconds, and watts or joules."""


@dataclass
class Energy:
    """What a meter measured; it is filled in when the block under `measure` ends, or fails.

    Attributes:
        joules: energy of the whole block, what the machine draws at rest included; None if a reading failed.
        seconds: the block's length, by the clock of this process.
        samples: readings that were taken, the first and the last of the block included.
        interval: seconds between readings of power that were summed up; None if the meter counts energy itself.
        problem: why there are no joules; empty if there are.
    """

    joules: float | None = None
    seconds: float = 0.0
    samples: int = 0
    interval: float | None = None
    problem: str = ""

    @property
    def watts(self) -> float | None:
        """Mean power."""
        return self.joules / self.seconds if self.joules is not None and self.seconds > 0 else None


@dataclass(frozen=True)
class PowerMeter:
    """Something that measures power or energy.

    Attributes:
        name: what is measured, such as `VDD_IN`, `GPU 0`, `package-0`.
        source: what measures it and where it is read.
        scope: what the energy is of: `board`, `module` (a Jetson without its carrier board), `GPU`, `CPU`, or `part`.
        read: one reading: watts, or joules since some moment. Raises OSError or ValueError if there is none.
        interval: seconds between readings.
        counts: whether `read` gives joules and not watts.
        wraps_at: joules at which the counter starts again at 0; None if it does not.
        problem: why it cannot be read, and what would help; empty if it can.
    """

    name: str
    source: str
    scope: str
    read: Callable[[], float] = field(repr=False, compare=False)
    interval: float
    counts: bool = False
    wraps_at: float | None = None
    problem: str = ""

    @contextmanager
    def measure(self) -> Iterator[Energy]:
        """Measure what runs in the `with` block; read the `Energy` after it.

            with meter.measure() as energy:
                session.run(...)
            print(energy.joules)

        A block shorter than the interval has the readings at its ends only.
        """
        energy = Energy(interval=None if self.counts else self.interval, problem=self.problem)
        sampler = None if self.problem else _Sampler(self.read, self.interval)
        start = time.perf_counter()
        try:
            yield energy
        finally:
            energy.seconds = time.perf_counter() - start
            if sampler is not None:
                self._fill(energy, *sampler.stop())

    def _fill(self, energy: Energy, readings: Sequence[Reading], failure: str) -> None:
        energy.samples = len(readings)
        try:
            if failure:
                raise ValueError(failure)
            values = [value for _, value in readings]
            energy.joules = counted(values, self.wraps_at) if self.counts else mean_power(readings) * energy.seconds
        except ValueError as error:
            energy.problem = f"{self.name} could not be read throughout: {error}"


def integrated(readings: Sequence[Reading]) -> float:
    """Joules under readings of watts, by the trapezoid rule."""
    pairs = itertools.pairwise(readings)
    return sum((later - earlier) * (first + second) / 2 for (earlier, first), (later, second) in pairs)


def mean_power(readings: Sequence[Reading]) -> float:
    """Watts between the first and the last reading.

    These lie outside of the block that is measured, by as long as a reading takes: a program's start, for nvidia-smi.
    """
    seconds = readings[-1][0] - readings[0][0]
    return integrated(readings) / seconds if seconds > 0 else readings[0][1]


def counted(values: Sequence[float], wraps_at: float | None) -> float:
    """Joules between the first and the last reading of a counter.

    Args:
        values: readings in joules, closer to each other than the counter takes to go round.
        wraps_at: where it starts again at 0.

    Raises:
        ValueError: it went backwards though it never starts again, as after a driver's restart.
    """
    total = 0.0
    for before, after in itertools.pairwise(values):
        if after < before and wraps_at is None:
            raise ValueError(f"the counter went back from {before:.3f} to {after:.3f} J")
        total += after - before if after >= before else after - before + (wraps_at or 0.0)
    return total


class _Sampler:
    """Reads at once, then every `interval` seconds, and a last time when it stops."""

    def __init__(self, read: Callable[[], float], interval: float) -> None:
        self._read, self._interval = read, interval
        self._readings: list[Reading] = []
        self._failure = ""
        self._stop = threading.Event()
        self._take()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> tuple[list[Reading], str]:
        """The readings, and why one failed."""
        self._stop.set()
        self._thread.join()
        self._take()
        return self._readings, self._failure

    def _watch(self) -> None:
        while not self._failure and not self._stop.wait(self._interval):
            self._take()

    def _take(self) -> None:
        if self._failure:
            return
        before = time.perf_counter()
        try:
            value = self._read()
            if not math.isfinite(value):
                raise ValueError(f"it reads {value}")
        except (OSError, ValueError, OverflowError) as error:
            self._failure = str(error) or type(error).__name__
            return
        # The middle of the read, which takes time over I2C and much more in a process of its own.
        self._readings.append(((before + time.perf_counter()) / 2, value))
