"""Made-up benches, and a clock that only moves when it is told to."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from iwp_export.backends.session import Cache, Features, StepInputs, StepOutput
from iwp_export.latency.figures import SPANS, Dropped, Latency, Side, Workload, spread_of
from iwp_export.models.common.family import Array
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.view.figures import Interval
from tests.runtime.toy import ASSETS, ToySession, toy_pipeline

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
    return Pipeline.of(toy.manifest, ASSETS, session)


def side(times: Mapping[str, float], memory: int) -> Side:
    """A side whose phases take these seconds; `rest` is none."""
    whole = sum(times.values())
    every = {**times, "rest": 0.0, "first_token": whole - times["decode"], "end_to_end": whole}
    columns = {name: (value,) * PAIRS for name, value in every.items()}
    phases = {name: spread_of(values) for name, values in columns.items()}
    return Side(columns, phases | {"step": spread_of([times["decode"] / 3] * 3)}, 3 << 31, memory, None)


def latency(
    prefill: tuple[float, float] = (0.9, 0.5), decode: tuple[float, float] = (0.2, 0.2), **changes: Any
) -> Latency:
    """A bench with these seconds, unpruned and pruned."""
    shared = {"preprocess": 0.01, "vision": 0.05}
    before, after = (side({**shared, "prefill": prefill[i], "decode": decode[i]}, (6 - i) << 30) for i in (0, 1))

    def ratio(name: str) -> Interval:
        value = before.phases[name].mean / after.phases[name].mean
        return Interval(value, value * 0.97, value * 1.03)

    made = Latency(
        workload=Workload("made-up questions", 1, 576.0, 32.0, 4, 4, 0.3, 173.0),
        warmup=3,
        pruned=after,
        unpruned=before,
        ratios={name: ratio(name) for name in ("prefill", "decode", *SPANS)},
        promised=1.81,
        processes=1,
        energy=(),
        dropped=(Dropped("pruned", (9, 9, 5), (9, 9, 5)), Dropped("unpruned", (9,) * 3, (9,) * 3)),
        load=0.1,
        notes=("joules not measured: no power sensor",),
    )
    return replace(made, **changes)
