"""A machine's state in words, for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Sequence

from iwp_export.device.metering import PowerMeter
from iwp_export.device.state import Clock, DeviceState, span

SPEED = ("power mode", "power limit", "GPU clock", "memory clock", "CPU clock", "throttling")


def rows(state: DeviceState) -> list[tuple[str, str]]:
    """Names and values of what is known."""
    jetpack = f"JetPack {state.jetpack or 'unknown'}, L4T {state.l4t}" if state.l4t else None
    versions = {"driver": state.driver, "CUDA": state.cuda, "TensorRT": state.tensorrt}
    slowed = {name: count for name, count in state.throttle_counts.items() if count}
    limit = f"{state.power_limit:.0f} W" if state.power_limit is not None else None
    found = (
        ("board", state.board),
        ("system", ", ".join(filter(None, (state.system, jetpack)))),
        ("GPU", f"{state.gpu}{f', one of {state.gpus}' if (state.gpus or 1) > 1 else ''}" if state.gpu else None),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)),
        ("power mode", state.power_mode),
        ("power limit", limit),
        ("GPU clock", _clock(state.gpu_clock)),
        ("memory clock", _clock(state.memory_clock)),
        ("CPU", ", ".join(filter(None, (state.cpu, f"{state.cpus} usable" if state.cpus else None)))),
        ("CPU clock", ", ".join(filter(None, (_clock(state.cpu_clock), state.governor)))),
        ("temperature", ", ".join(f"{name} {value:.0f} °C" for name, value in state.temperatures.items())),
        ("throttling", None if state.throttling is None else ", ".join(state.throttling) or "none now"),
        ("slowed down since it started", ", ".join(f"{count:,} times by {name}" for name, count in slowed.items())),
        ("packages", ", ".join(f"{name} {version}" for name, version in state.packages.items())),
    )
    return [(name, value) for name, value in found if value]


def speed_rows(state: DeviceState) -> list[tuple[str, str]]:
    """Those of the rows that say how fast the machine runs now."""
    return [row for row in rows(state) if row[0] in SPEED]


def meter_rows(meters: Sequence[PowerMeter]) -> list[tuple[str, str]]:
    """Each meter of power, and where it is read or why it is not."""
    return [(f"power of {meter.name}", meter.problem or f"{meter.scope}, {meter.source}") for meter in meters]


def _clock(clock: Clock | None) -> str | None:
    if clock is None:
        return None
    now = f"{clock.now:,.0f} MHz" if clock.now is not None else None
    lock = {True: "locked", False: f"not locked, {span(clock)}", None: f"at most {_greatest(clock)}"}[clock.locked]
    return ", ".join(filter(None, (now, lock)))


def _greatest(clock: Clock) -> str:
    return f"{clock.greatest:,.0f} MHz, lock unknown" if clock.greatest is not None else "unknown"
