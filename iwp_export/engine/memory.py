"""Memory of a build: an estimate before it starts, and a watch while it runs, so that running out has a name."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

from iwp_export.errors import BackendError

BASE_BYTES = 600 << 20
"""Host memory that TensorRT takes for a small model."""
COPIES_OF_WEIGHTS = {1: 3.2, 2: 6.0}
"""Host memory per byte of weights by number of profiles, measured; docs/tensorrt.md has the figures."""
RESERVE_BYTES = 256 << 20
"""Free memory below which a build is stopped: the system would end the process soon, with no word."""
POLL_SECONDS = 0.1

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


class BuildMemoryError(BackendError):
    """A build needs more memory than the machine has."""


def estimate_build_bytes(weight_bytes: int, profiles: int = 1) -> int:
    """Host memory that building an engine takes at its peak."""
    return BASE_BYTES + int(COPIES_OF_WEIGHTS[profiles] * weight_bytes)


def available_bytes() -> int | None:
    """Memory that this process can still get, swap included; None where the system does not tell."""
    try:
        lines = MEMINFO.read_text().splitlines()
        fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
        available = fields["MemAvailable"] + fields.get("SwapFree", 0)
    except (OSError, KeyError, ValueError, IndexError):
        return None
    try:  # a container's own limit
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        cached = next(
            (
                int(line.split()[1])
                for line in (CGROUP / "memory.stat").read_text().splitlines()
                if line.startswith("file ")
            ),
            0,
        )
        return min(available, limit - used + cached)
    except (OSError, ValueError):
        return available


def require_memory(what: str, weight_bytes: int, profiles: int = 1) -> None:
    """Refuse a build that would not fit.

    Raises:
        BuildMemoryError: the estimate exceeds what is available.
    """
    needed, available = estimate_build_bytes(weight_bytes, profiles), available_bytes()
    if available is not None and needed > available:
        raise BuildMemoryError(
            f"building the {what} needs about {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are "
            "available: close other programs, add swap, or build on a larger machine; "
            "--skip-memory-check tries all the same"
        )


class MemoryWatch:
    """Context manager that looks at free memory while a build runs; `low` turns true when it is nearly gone."""

    def __init__(self, reserve_bytes: int = RESERVE_BYTES) -> None:
        self.low = False
        self._reserve = reserve_bytes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            available = available_bytes()
            if available is None:
                return
            if available < self._reserve:
                self.low = True
                return
