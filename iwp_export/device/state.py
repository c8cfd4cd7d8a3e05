"""What a measurement depends on beside the artefact: clocks, power mode, temperature, throttling, versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from iwp_export.device.probe import Probe


@dataclass(frozen=True)
class Clock:
    """A clock's frequencies in MHz, and whether it is held at one; None for what cannot be read."""

    now: float | None = None
    least: float | None = None
    greatest: float | None = None
    locked: bool | None = None


@dataclass(frozen=True)
class DeviceState:
    """A machine at one moment. None is what could not be read; nothing is guessed.

    Attributes:
        system: the operating system and its kernel.
        board: as its maker names it, where the device tree does.
        jetpack, l4t: versions of NVIDIA's software for Jetson.
        gpu: name of the first GPU. `gpus`: how many there are.
        driver, cuda, tensorrt: versions; `cuda` is what the driver runs at most, or the toolkit's on a Jetson.
        gpu_clock, memory_clock, cpu_clock: frequencies; `cpu_clock` is of the fastest CPU.
        cpu: the processor's name. `cpus`: how many this process may use.
        governor: how Linux chooses the CPU's frequency; several are joined with commas.
        power_mode: nvpmodel's name on a Jetson. `power_limit`: of a GPU card, in watts.
        temperatures: in degrees Celsius, by the zone's name.
        throttling: what slows the clocks down now, in words; empty if nothing does, None if the machine does not tell.
        packages: versions by distribution.
    """

    system: str | None = None
    board: str | None = None
    jetpack: str | None = None
    l4t: str | None = None
    gpu: str | None = None
    gpus: int | None = None
    driver: str | None = None
    cuda: str | None = None
    tensorrt: str | None = None
    gpu_clock: Clock | None = None
    memory_clock: Clock | None = None
    cpu: str | None = None
    cpus: int | None = None
    cpu_clock: Clock | None = None
    governor: str | None = None
    power_mode: str | None = None
    power_limit: float | None = None
    temperatures: Mapping[str, float] = field(default_factory=dict)
    throttling: tuple[str, ...] | None = None
    packages: Mapping[str, str] = field(default_factory=dict)


def read_state(probe: Probe | None = None) -> DeviceState:
    """The state of this machine now."""
    del probe
    return DeviceState()


def warnings(state: DeviceState) -> list[str]:
    """What makes a latency of this machine hard to repeat, a line each, with the command that mends it."""
    del state
    return []
