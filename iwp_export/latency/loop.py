"""A control loop: requests that start at fixed times, one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from iwp_export.latency.figures import Loop


def run_loop(side: str, hz: float, requests: int, answer: Callable[[int], object]) -> Loop:
    """Start a request every 1/hz seconds; one that is late is answered all the same, and delays those behind it.

    Args:
        side: whose requests they are.
        hz: requests a second.
        requests: how many.
        answer: answers the request of a number, from 0.
    """
    period, start = 1 / hz, time.perf_counter()
    lateness, delays = [], []
    for number in range(requests):
        due = start + number * period
        wait = due - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        delays.append(max(0.0, -wait))
        answer(number)
        lateness.append(max(0.0, time.perf_counter() - due - period))
    return Loop(side, hz, tuple(lateness), tuple(delays))


def joined(turns: Sequence[Loop]) -> Loop:
    """Turns of the same loop as one."""
    lateness, delays = (
        tuple(value for turn in turns for value in getattr(turn, name)) for name in ("lateness", "delays")
    )
    return Loop(turns[0].side, turns[0].hz, lateness, delays)
