"""Joules of an answer, by every power sensor that the machine has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from iwp_export.device.meters import PowerMeter
from iwp_export.latency.figures import Energy

LEAST_SECONDS = 2.0
"""Of a measurement: sensors refresh every 0.01 to 0.1 s."""
MOST_ANSWERS = 1000
TURNS = 3
NO_SENSOR = "joules not measured: no power sensor"


def measure_energy(
    meters: Sequence[PowerMeter], pruned: Callable[[], object], unpruned: Callable[[], object], seconds: float
) -> tuple[tuple[Energy, ...], tuple[str, ...]]:
    """Joules of an answer, pruned and unpruned in turn; one meter after the other.

    Args:
        meters: the sensors.
        pruned, unpruned: answer one request.
        seconds: that the faster of them takes.

    Returns:
        What each sensor measured, and why others did not.
    """
    answers = max(1, math.ceil(LEAST_SECONDS / max(seconds, LEAST_SECONDS / MOST_ANSWERS)))
    found, notes = [], [] if meters else [NO_SENSOR]
    for meter in meters:
        try:
            sides = _in_turn(meter, pruned, unpruned, answers)
        except _Unread as problem:
            notes.append(f"joules of {meter.name} not measured: {problem}")
            continue
        found.append(Energy(meter.name, meter.scope, meter.source, answers, *sides))
    return tuple(found), tuple(notes)


class _Unread(Exception):  # noqa: N818 (a finding, which becomes a note)
    """A sensor that could not be read, and why."""


def _in_turn(
    meter: PowerMeter, pruned: Callable[[], object], unpruned: Callable[[], object], answers: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    joules: tuple[list[float], list[float]] = [], []
    for _ in range(TURNS):
        for call, values in zip((pruned, unpruned), joules, strict=True):
            if meter.problem:
                raise _Unread(meter.problem)
            with meter.measure() as reading:
                for _ in range(answers):
                    call()
            if reading.joules is None:
                raise _Unread(reading.problem)
            values.append(reading.joules / answers)
    return tuple(joules[0]), tuple(joules[1])
