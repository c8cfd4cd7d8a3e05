"""What `nvidia-smi -q` prints, read as a tree. A Jetson's prints N/A for most of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from iwp_export.device.clock import Clock
from iwp_export.device.probe import Probe

HARMLESS = ("Idle", "Applications Clocks Setting", "Display Clock Setting", "Sync Boost")
"""Reasons for which a clock is not at its top that are no throttling."""
ABSENT = ("N/A", "[N/A]", "Not Supported", "Unknown Error", "")

Tree = dict[str, Any]


@dataclass(frozen=True)
class SmiReport:
    """What nvidia-smi says of the first GPU; None is what it does not say.

    Attributes:
        name, driver, cuda: `cuda` is the newest that the driver runs.
        gpus: how many there are.
        clock, memory_clock: in MHz. Whether they are locked is not printed, so `locked` is None.
        power_limit: watts.
        temperature: degrees Celsius.
        throttling: reasons for lower clocks that are active now.
    """

    name: str | None
    driver: str | None
    cuda: str | None
    gpus: int | None
    clock: Clock | None
    memory_clock: Clock | None
    power_limit: float | None
    temperature: float | None
    throttling: tuple[str, ...] | None


def read_smi(probe: Probe) -> SmiReport | None:
    """Ask nvidia-smi; None if it is not here or does not answer."""
    text = probe.output("nvidia-smi", "-q")
    if text is None:
        return None
    tree = parse(text)
    gpu = next((value for name, value in tree.items() if name.startswith("GPU ") and isinstance(value, dict)), {})
    count = _number(_leaf(tree, "Attached GPUs"))
    return SmiReport(
        name=_leaf(gpu, "Product Name"),
        driver=_leaf(tree, "Driver Version"),
        cuda=_leaf(tree, "CUDA Version"),
        gpus=None if count is None else int(count),
        clock=_clock(gpu, "SM"),
        memory_clock=_clock(gpu, "Memory"),
        power_limit=_first(
            _number(_leaf(gpu, group, name))
            for group in ("GPU Power Readings", "Power Readings")
            for name in ("Current Power Limit", "Power Limit")
        ),
        temperature=_number(_leaf(gpu, "Temperature", "GPU Current Temp")),
        throttling=_throttling(gpu),
    )


def parse(text: str) -> Tree:
    """The tree of an indented text of `name : value` lines; a line without a value opens a branch."""
    root: Tree = {}
    branches: list[tuple[int, Tree]] = [(-1, root)]
    for line in text.splitlines():
        if not line.strip() or line.startswith("="):
            continue
        depth = len(line) - len(line.lstrip())
        while branches[-1][0] >= depth:
            branches.pop()
        # A GPU's own line, `GPU 00000000:04:00.0`, has colons without space around them.
        name, colon, value = line.strip().partition(" : ")
        branch: Tree = {}
        branches[-1][1].setdefault(name.strip(), value.strip() if colon else branch)
        if not colon:
            branches.append((depth, branch))
    return root


def _leaf(tree: Tree, *names: str) -> str | None:
    node: Any = tree
    for name in names:
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, str) and node not in ABSENT else None


def _number(text: str | None) -> float | None:
    found = re.match(r"-?\d+(\.\d+)?", text or "")
    return float(found[0]) if found else None


def _first(values: Any) -> float | None:
    return next((value for value in values if value is not None), None)


def _clock(gpu: Tree, name: str) -> Clock | None:
    now, greatest = _number(_leaf(gpu, "Clocks", name)), _number(_leaf(gpu, "Max Clocks", name))
    return None if now is None and greatest is None else Clock(now=now, greatest=greatest)


def _throttling(gpu: Tree) -> tuple[str, ...] | None:
    """Active reasons; the block's name changed with driver 535."""
    for block in ("Clocks Event Reasons", "Clocks Throttle Reasons"):
        reasons = gpu.get(block)
        if isinstance(reasons, dict) and any(value in ("Active", "Not Active") for value in reasons.values()):
            return tuple(name for name, value in reasons.items() if value == "Active" and name not in HARMLESS)
    return None
