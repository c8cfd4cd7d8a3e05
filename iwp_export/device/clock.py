"""Clocks: frequencies in MHz, and whether one is held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HZ, KHZ = 1e6, 1e3
"""What files give for a megahertz: devfreq counts in Hz, cpufreq in kHz."""


@dataclass(frozen=True)
class Clock:
    """A clock in MHz; None is what cannot be read.

    Attributes:
        now: at this moment; of several of a kind the highest.
        least, greatest: the limits that it may move between, which a power mode sets too.
        locked: whether it is held: its limits are equal.
    """

    now: float | None = None
    least: float | None = None
    greatest: float | None = None
    locked: bool | None = None


def clock_of(now: Sequence[int | None], limits: Sequence[tuple[int | None, int | None]], unit: float) -> Clock | None:
    """A clock of the readings of one device or of several; None if nothing could be read.

    Args:
        now: frequencies at this moment.
        limits: the lowest and the highest that are allowed, of each device.
        unit: readings in one MHz.
    """
    known = [value for value in now if value is not None]
    whole = [(low, high) for low, high in limits if low is not None and high is not None]
    if not known and not whole:
        return None
    return Clock(
        max(known) / unit if known else None,
        min(low for low, _ in whole) / unit if whole else None,
        max(high for _, high in whole) / unit if whole else None,
        all(low == high for low, high in whole) if whole else None,
    )
