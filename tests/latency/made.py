"""Made-up benches, and a clock that only moves when it is told to."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from iwp_export.backends.session import Cache, Features, StepInputs, StepOutput
from iwp_export.latency.figures import (
    PHASES,
    SPANS,
    Dropped,
    Latency,
    Memory,
    Ratio,
    Selection,
    Side,
    Workload,
)
from iwp_export.latency.spread import spread_of
from iwp_export.models.common.family import Array
from iwp_export.runtime.pipeline import Pipeline
from tests.runtime.toy import ToySession, toy_pipeline

PAIRS = 20


@dataclass
class Clock:
    """In place of `time`: `perf_counter` and `sleep`."""

    now: float = 100.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def install(self, patch: pytest.MonkeyPatch) -> Clock:
        patch.setattr(time, "perf_counter", lambda: self.now)
        patch.setattr(time, "sleep", self.sleep)
        return self


class ClockedSession(ToySession):
    """The toy, whose calls take time by the fake clock: an image 20 ms, a prompt 1 ms a token kept, a step 4 ms."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def encode(self, inputs: Mapping[str, Array]) -> Features:
        self.clock.now += 0.020
        return super().encode(inputs)

    def step(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> StepOutput:
        self.clock.now += 0.004 if inputs.input_ids.size == 1 else 0.001 * inputs.num_kept
        return super().step(inputs, features, cache)


def pipeline_on(session: ToySession) -> Pipeline:
    toy, _ = toy_pipeline(keep=0.25)
    return Pipeline.of(toy.manifest, _assets(), session)


def _assets():
    from tests.runtime.toy import ASSETS

    return ASSETS


def side(times: Mapping[str, float], noise: float = 0.0, steps: int = 3) -> Side:
    """A side whose phases take these seconds; `rest` is none."""
    rng = np.random.default_rng(0)
    whole = {**times, "first_token": sum(times.values()) - times["decode"], "end_to_end": sum(times.values())}
    columns = {name: tuple(whole[name] * (1 + noise * rng.standard_normal(PAIRS))) for name in (*PHASES, *SPANS)}
    phases = {name: spread_of(values) for name, values in columns.items()} | {"rest": spread_of([0.0] * PAIRS)}
    each = (times["decode"] / steps,) * steps
    return Side(**columns, steps=each, phases=phases | {"step": spread_of(each)}, cache_bytes=3 << 31)


def latency(
    prefill: tuple[float, float] = (0.9, 0.5), decode: tuple[float, float] = (0.2, 0.2), **changes: Any
) -> Latency:
    """A bench with these seconds, unpruned and pruned."""
    shared = {"preprocess": 0.01, "vision": 0.05}
    before, after = (side({**shared, "prefill": prefill[i], "decode": decode[i]}) for i in (0, 1))

    def ratio(name: str, promised: float | None = None) -> Ratio:
        value = before.phases[name].mean / after.phases[name].mean
        return Ratio(value, value * 0.97, value * 1.03, promised)

    made = Latency(
        artefact="made.bundle",
        provider="cpu",
        dtype="float32",
        workload=Workload("made-up questions", 1, 576.0, 32.0, 4, 4, 0.3, 173.0),
        warmup=3,
        pruned=after,
        unpruned=before,
        ratios={name: ratio(name, 1.81 if name == "prefill" else None) for name in ("prefill", "decode", *SPANS)},
        trends=(),
        selection=Selection(spread_of([0.004] * PAIRS), "alone"),
        loops=(),
        memory=Memory(1 << 33, {"pruned prefill": 5 << 30, "unpruned prefill": 6 << 30}, {}),
        energy=(),
        dropped=(
            Dropped("pruned", (9, 9, 5), (9, 9, 5), "read back"),
            Dropped("unpruned", (9,) * 3, (9,) * 3, "read back"),
        ),
        load=(0.5, 0.6),
        cpus=4,
        notes=("joules not measured: no power sensor",),
    )
    return replace(made, **changes)
