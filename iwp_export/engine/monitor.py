"""TensorRT's progress as one bar, and the way to stop a build from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


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
