"""TensorRT's log: kept for error messages, shown only on demand."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

KEPT_LINES = 200
OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemory|insufficient (?:host |device )?memory|bad_alloc|cannot allocate|MEM_ALLOC", re.I
)


def make_logger(trt: Any) -> Any:
    """A `trt.ILogger` that keeps warnings and errors: `errors` and `warnings` are lists of lines.

    With IWP_EXPORT_DEBUG set, everything from the information level on also goes to stderr.
    """

    class CollectingLogger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self._shown = bool(os.environ.get("IWP_EXPORT_DEBUG"))

        def log(self, severity: Any, message: str) -> None:
            kept = self.warnings if severity == trt.ILogger.WARNING else self.errors
            serious = severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING)
            if serious and len(kept) < KEPT_LINES:
                kept.append(" ".join(message.split()))
            if self._shown and severity != trt.ILogger.VERBOSE:
                print(f"[{trt.__name__}] {message}", file=sys.stderr)

    return CollectingLogger()


def make_printing_logger(trt: Any) -> Any:
    """TensorRT's own logger, which prints errors to stderr, and more with IWP_EXPORT_DEBUG set.

    For TensorRT-RTX while an engine runs: it compiles kernels in threads of its own, and one that waits for Python's
    lock to log a line could stand in the way of a thread that holds the lock and waits for it.
    """
    return trt.Logger(trt.Logger.INFO if os.environ.get("IWP_EXPORT_DEBUG") else trt.Logger.ERROR)


def first_error(logger: Any) -> str:
    """The first error of a log, or what to do where it has none."""
    if not hasattr(logger, "errors"):
        return "its log is above"
    return logger.errors[0] if logger.errors else "it logged no error; set IWP_EXPORT_DEBUG=1 to see its log"


def ran_out_of_memory(logger: Any) -> bool:
    """Whether a log tells of memory that could not be had."""
    return any(OUT_OF_MEMORY.search(line) for line in [*logger.errors, *logger.warnings])


@dataclass
class _Phase:
    start: float
    step: float
    done: int = 0


def make_monitor(trt: Any, advance: Callable[[float], None], should_stop: Callable[[], bool]) -> Any:
    """A `trt.IProgressMonitor`.

    Args:
        trt: the module.
        advance: called with shares of the whole, which add up to 1.
        should_stop: asked after every step; true cancels the build.

    Returns:
        The monitor. Its `interrupted` is true after Ctrl-C, which must not pass through TensorRT as an exception.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._phases: dict[str, _Phase] = {}
            self._shown = 0.0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            above = self._phases.get(parent) if parent is not None else None
            start, share = (0.0, 1.0) if above is None else (above.start + above.done * above.step, above.step)
            self._phases[name] = _Phase(start, share / max(steps, 1))

        def step_complete(self, name: str, step: int) -> bool:
            try:
                if phase := self._phases.get(name):
                    phase.done = step + 1
                    self._show(phase.start + phase.done * phase.step)
                return not (self.interrupted or should_stop())
            except KeyboardInterrupt:
                self.interrupted = True
                return False

        def phase_finish(self, name: str) -> None:
            self._phases.pop(name, None)

        def _show(self, position: float) -> None:
            position = min(position, 1.0)
            if position > self._shown:
                advance(position - self._shown)
                self._shown = position

    return Monitor()
