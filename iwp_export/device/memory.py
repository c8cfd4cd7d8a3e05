"""Free memory of this machine, and a watch over it while a long step runs."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

RESERVE_BYTES = 256 << 20
"""Free memory below which a build is stopped: the system would end the process soon, with no word."""
POLL_SECONDS = 0.1

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


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
