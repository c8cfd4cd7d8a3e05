"""What a bench measured, as JSON values in seconds and bytes, and the statistics of repeated times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from iwp_export.bundle.schema import FileSize
from iwp_export.settings import RUNS_FOR_P99
from iwp_export.view.figures import NORMAL_95, RESAMPLES, Interval, around, standard_error

PHASES = ("preprocess", "vision", "prefill", "decode", "rest")
"""One after the other; `rest` is the host's work between them."""
SPANS = ("first_token", "end_to_end")
"""From the request to its first token, and to its last."""
SIDES = ("unpruned", "pruned")
BLOCKS, LEAST_BLOCK = 10, 4
"""A bootstrap draws blocks of consecutive pairs, so that slow drift stays inside of them: ten, of 4 pairs at least."""
STUDENT_95 = (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Standard errors on either side of a mean of 3, 4, ... 10 values that hold 95 % (Student's t)."""
FEWEST = 3


@dataclass(frozen=True)
class Spread:
    """Repeated times.

    Attributes:
        runs: how many.
        mean: of all.
        p50, p90, p99: percentiles; p99 is None with fewer runs than `RUNS_FOR_P99`.
        worst: the slowest run.
    """

    runs: int
    mean: float
    p50: float
    p90: float
    p99: float | None
    worst: float


@dataclass(frozen=True)
class Workload:
    """What was asked.

    Attributes:
        source: where images and prompts are from, in words.
        questions: how many different ones were asked in turn.
        visual_tokens, text_tokens: of the prompts, means over the questions.
        new_tokens: of every answer.
        layer: the one at whose input tokens are dropped.
        keep: share of the visual tokens that stays.
        kept: visual tokens that stay, mean over the questions.
    """

    source: str
    questions: int
    visual_tokens: float
    text_tokens: float
    new_tokens: int
    layer: int
    keep: float
    kept: float


@dataclass(frozen=True)
class Side:
    """The pruned or the unpruned runs.

    Attributes:
        times: seconds of each run, in order, by the names of `PHASES` and `SPANS`.
        phases: their percentiles and means, and under `step` those of all decode steps of all runs.
        cache: bytes of keys and values at the end, mean over the runs.
        memory: most resident bytes of the process in the first run; None if the system does not tell.
        gpu: bytes in use on the GPU after it, other programs' included; None without one.
    """

    times: Mapping[str, tuple[float, ...]]
    phases: Mapping[str, Spread]
    cache: FileSize
    memory: FileSize | None
    gpu: FileSize | None


@dataclass(frozen=True)
class Energy:
    """Joules of an answer by one meter, with what the machine draws when idle.

    Attributes:
        meter: what measured. `scope`: what it is of, such as `module` or `GPU`.
        pruned, unpruned: joules of an answer, mean over turns.
    """

    meter: str
    scope: str
    pruned: float
    unpruned: float


@dataclass(frozen=True)
class Dropped:
    """Cache lengths by layer after a prompt and a decode step, read back from the backend's buffers.

    Attributes:
        side: `pruned` or `unpruned`.
        expected: what pruning should leave.
        found: what is there.
        flaw: what is wrong beyond the lengths; empty if nothing is.
    """

    side: str
    expected: tuple[int, ...]
    found: tuple[int, ...]
    flaw: str = ""

    @property
    def holds(self) -> bool:
        """Whether the caches are as expected."""
        return self.found == self.expected and not self.flaw


@dataclass(frozen=True)
class Latency:
    """A bench: pruned and unpruned runs in turn, one request at a time.

    Attributes:
        workload: what was asked.
        warmup: runs of each side before those that count.
        pruned, unpruned: the runs.
        ratios: how many times as long the unpruned runs take, by phase; `mean` is the middle of the pairs.
        promised: the prefill's ratio by the number of multiply-adds.
        processes: how many measured; of several, ratios are means of theirs.
        energy: by meter; empty if there is none.
        dropped: proof that tokens were dropped.
        load: the system's load average of a minute, before, a processor.
        notes: what could not be measured.
    """

    workload: Workload
    warmup: int
    pruned: Side
    unpruned: Side
    ratios: Mapping[str, Interval]
    promised: float
    processes: int
    energy: tuple[Energy, ...]
    dropped: tuple[Dropped, ...]
    load: float
    notes: tuple[str, ...]

    @property
    def pairs(self) -> int:
        """Pairs of a pruned and an unpruned run."""
        return len(self.pruned.times["end_to_end"])

    def side(self, name: str) -> Side:
        """One of `SIDES`."""
        return self.pruned if name == "pruned" else self.unpruned


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and percentiles of times."""
    array = np.asarray(values, float)
    p50, p90, p99 = (float(value) for value in np.percentile(array, [50, 90, 99]))
    enough = len(array) >= RUNS_FOR_P99
    return Spread(len(array), float(array.mean()), p50, p90, p99 if enough else None, float(array.max()))


def paired_ratio(over: npt.ArrayLike, under: npt.ArrayLike) -> Interval:
    """How many times as long `over` takes: the median of the pairs' ratios, with its block-bootstrap interval.

    Neighbours are averaged first (of logarithms): the order of a pair's two runs swaps from pair to pair, and the
    median would jump between the two orders' ratios.

    Both are seconds of the two runs of each pair, in the order of the pairs; `settings.LEAST_PAIRS` at least.
    """
    logs = np.log(np.asarray(over, float) / np.asarray(under, float))
    both = (logs[1:] + logs[:-1]) / 2
    blocks = max(FEWEST, min(BLOCKS, len(both) // LEAST_BLOCK))
    drawn = around(float(np.median(both)), _drawn_medians(both, max(1, len(both) // blocks)))
    # so few blocks say too little of their own scatter
    wider = STUDENT_95[blocks - FEWEST] / NORMAL_95 * math.sqrt(blocks / (blocks - 1))
    return _factor(drawn.mean, wider * (drawn.low - drawn.mean), wider * (drawn.high - drawn.mean))


def ratio_of_processes(ratios: Sequence[float]) -> Interval:
    """Mean of the ratios (of logarithms) of 3 to 10 processes, with Student's interval."""
    logs = np.log(ratios)
    reach = STUDENT_95[len(logs) - FEWEST] * standard_error(logs)
    return _factor(float(logs.mean()), -reach, reach)


def _drawn_medians(array: npt.NDArray[np.float64], length: int) -> npt.NDArray[np.float64]:
    """Medians [RESAMPLES] of as many values [n] as there are, drawn in blocks that wrap around the end."""
    starts = np.random.default_rng(0).integers(len(array), size=(RESAMPLES, math.ceil(len(array) / length)))
    places = (starts[..., None] + np.arange(length)).reshape(RESAMPLES, -1)[:, : len(array)] % len(array)
    return np.median(array[places], 1)


def _factor(log: float, below: float, above: float) -> Interval:
    return Interval(math.exp(log), math.exp(log + below), math.exp(log + above))


def joined(benches: Sequence[Latency]) -> Latency:
    """Benches of several processes as one: all runs, and ratios whose intervals are of the processes' ratios.

    What is measured once a process (memory, energy, decode steps) is that of the process in the middle, by its ratio
    end to end; of the proof that tokens were dropped, one that fails is taken.
    """
    middle = sorted(benches, key=lambda each: each.ratios["end_to_end"].mean)[len(benches) // 2]
    return replace(
        middle,
        pruned=_pooled(middle.pruned, [each.pruned for each in benches]),
        unpruned=_pooled(middle.unpruned, [each.unpruned for each in benches]),
        ratios={name: ratio_of_processes([each.ratios[name].mean for each in benches]) for name in middle.ratios},
        processes=len(benches),
        dropped=next(
            (each.dropped for each in benches if not all(side.holds for side in each.dropped)), middle.dropped
        ),
        load=benches[0].load,
    )


def _pooled(middle: Side, sides: Sequence[Side]) -> Side:
    times = {name: tuple(value for side in sides for value in side.times[name]) for name in middle.times}
    spreads = {name: spread_of(values) for name, values in times.items()}
    return replace(middle, times=times, phases={**middle.phases, **spreads})
