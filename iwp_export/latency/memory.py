"""Peak memory of a request, phase by phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from iwp_export.backends.session import Array, Cache, Features, Session, StepInputs, StepOutput
from iwp_export.device.gpu import gpu_used_bytes
from iwp_export.device.machine import peak_bytes, reset_peak, resident_bytes
from iwp_export.latency.figures import Memory
from iwp_export.latency.requests import answer
from iwp_export.latency.workload import Ask
from iwp_export.runtime.pipeline import Pipeline

ON_THE_CPU = ("cpu", "torch", "openvino", "xnnpack", "qnn", "coreml")
"""Providers of which an NVIDIA GPU's memory says nothing."""


class PeakSession:
    """A session that reads the process's high-water mark after each call, and sets it back; else it is the session.

    Where the system does not let the mark be set back, there are no peaks.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.peaks: dict[str, int] = {}
        # else the mark is that of the process's whole life, the reading of weights included
        self._is_set_back = reset_peak()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def encode(self, inputs: Mapping[str, Array]) -> Features:
        """See `Session.encode`."""
        features = self._session.encode(inputs)
        self._read("vision")
        return features

    def new_cache(self) -> Cache:
        """See `Session.new_cache`; a request asks for its cache when it is prepared."""
        self._read("preprocess")
        return self._session.new_cache()

    def step(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> StepOutput:
        """See `Session.step`."""
        output = self._session.step(inputs, features, cache)
        self._read("prefill" if inputs.input_ids.size > 1 else "decode")
        return output

    def _read(self, phase: str) -> None:
        peak = peak_bytes() if self._is_set_back else None
        if peak is not None:
            self.peaks[phase] = max(peak, self.peaks.get(phase, 0))
            self._is_set_back = reset_peak()


def watch_memory(
    pipeline: Pipeline,
    ask: Ask,
    keeps: Mapping[str, float],
    new_tokens: int,
    gpu_bytes: Callable[[], int | None] = gpu_used_bytes,
) -> Memory:
    """Answer once with each keep ratio, in order; the least first, since a backend may keep the memory it once took.

    Args:
        pipeline: the artefact, best one that has answered nothing yet.
        ask: the request.
        keeps: ratios by the side's name.
        new_tokens: of the answers.
        gpu_bytes: what is in use on the GPU.
    """
    loaded = resident_bytes()
    peaks, gpu = {}, {}
    on_gpu = pipeline.provider.lower() not in ON_THE_CPU
    for side, keep in keeps.items():
        session = PeakSession(pipeline.session)
        answer(pipeline, ask, keep, new_tokens, cast(Session, session))
        peaks.update({f"{side} {phase}": peak for phase, peak in session.peaks.items()})
        if on_gpu and (used := gpu_bytes()) is not None:
            gpu[side] = used
    return Memory(loaded, peaks, gpu)
