"""Energy from what the machine measures itself: the board's monitors on a Jetson, NVML on a GPU card, RAPL on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol


@dataclass
class Energy:
    """What a meter measured; filled in when the block under `measure` ends, or fails.

    Attributes:
        joules: energy over the whole of it, idle power included; None if the meter could not be read throughout.
        seconds: how long it was, by the clock of this process.
        samples: how often the meter was read.
        interval: seconds between readings of power, which were summed up; None if the meter counts energy itself.
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


class PowerMeter(Protocol):
    """Something that measures power.

    Attributes:
        name: what is measured, such as `VDD_IN`, `GPU 0` or `package-0`.
        source: what measures it, such as `INA3221`, `NVML`, `RAPL`, and the file or call that is read.
        scope: what the energy is of: `board`, `GPU`, `CPU`, `memory` or `part` (one of several rails of a board).
        problem: why it cannot be read, and what would help; empty if it can.
    """

    name: str
    source: str
    scope: str
    problem: str

    def measure(self) -> AbstractContextManager[Energy]:
        """Measure what runs in the `with` block; read the `Energy` after it.

        with meter.measure() as energy:
            session.run(...)
        print(energy.joules)
        """
        ...


def find_meters() -> list[PowerMeter]:
    """Every meter of this machine that can be read; those of a whole board or card come first."""
    return []


@contextmanager
def measure_all(meters: list[PowerMeter]) -> Iterator[dict[str, Energy]]:
    """Measure with several meters at once; by name, those of the list alone."""
    yield {meter.name: Energy() for meter in meters}
