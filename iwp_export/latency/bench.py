"""A bench: pruned and unpruned requests in turn, one at a time, and what else is known of them."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from iwp_export.device.meters import PowerMeter, find_meters
from iwp_export.errors import SettingsError
from iwp_export.latency.energy import measure_energy
from iwp_export.latency.figures import PHASES, SPANS, Latency, Loop, Ratio, Side, Trend, Workload
from iwp_export.latency.loop import joined, run_loop
from iwp_export.latency.memory import watch_memory
from iwp_export.latency.promise import promised_speedup
from iwp_export.latency.proof import prove_dropped
from iwp_export.latency.requests import Run, answer
from iwp_export.latency.selection import time_selection
from iwp_export.latency.spread import LEAST_PAIRS, RUNS_FOR_P99, paired_ratio, spread_of, trend
from iwp_export.latency.workload import Ask, Asks
from iwp_export.progress import progress
from iwp_export.pruning.settings import check_keep
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.result import Result

WARMUP, NEW_TOKENS = 3, 32
FEWEST, MOST, SECONDS = 40, 200, 30.0
"""Pairs where the caller does not say: as many as take so long, within these numbers."""
LOOP_TURN = 10
"""Requests of one side's control loop before the other's turn."""
RATIOS = ("prefill", "decode", *SPANS)
"""Phases that pruning changes."""
TRENDS = ("prefill", "end_to_end")
SIDES = ("pruned", "unpruned")
DIGITS = 7
"""Of a second, in a report: a tenth of a microsecond."""


@dataclass(frozen=True)
class BenchSettings:
    """How to measure.

    Attributes:
        keep: share of the visual tokens that stays in the pruned runs; None is the artefact's own.
        new_tokens: length of every answer.
        pairs: of a pruned and an unpruned run; None is as many as take 30 s, 40 (or where a 99th percentile is needed,
            100) to 200.
        warmup: runs of each side before those that count.
        hz: requests a second of the control loop; None for no loop.
        threads: of one operator, as the pipeline was opened with.
        needs_p99: whether a gate asks for it.

    Raises:
        SettingsError: a value is out of range.
    """

    keep: float | None = None
    new_tokens: int = NEW_TOKENS
    pairs: int | None = None
    warmup: int = WARMUP
    hz: float | None = None
    threads: int | None = None
    needs_p99: bool = False

    def __post_init__(self) -> None:
        if self.keep is not None:
            check_keep(self.keep)
        least = {"new_tokens": 1, "pairs": RUNS_FOR_P99 if self.needs_p99 else LEAST_PAIRS, "warmup": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
                why = " for a 99th percentile" if name == "pairs" and self.needs_p99 else ""
                raise SettingsError(
                    f"{name} must be a whole number of {low} or more{why}, got {value!r}", options=(name,)
                )
        if self.hz is not None and not 0 < self.hz <= 1000:
            raise SettingsError(f"hz must be above 0 and at most 1000, got {self.hz!r}", options=("hz",))

    def number_of_pairs(self, seconds: float, requests: int = 1) -> int:
        """Pairs to run, when one takes `seconds`, so that each of the requests is asked."""
        least = max(RUNS_FOR_P99 if self.needs_p99 else FEWEST, requests)
        return self.pairs or max(least, min(MOST, round(SECONDS / max(seconds, SECONDS / MOST))))


def measure_latency(
    pipeline: Pipeline,
    asks: Asks,
    settings: BenchSettings,
    name: str,
    meters: Sequence[PowerMeter] | None = None,
) -> Latency:
    """Measure an artefact.

    Memory comes first, while the backend has not taken any for earlier runs, then the pairs; the rest follows.

    Args:
        pipeline: the artefact; nothing else should run on the machine.
        asks: the requests.
        settings: how to measure.
        name: the artefact's.
        meters: power sensors; None is this machine's.

    Raises:
        SettingsError: the keep ratio is 1, so that there is nothing to compare, or there are fewer pairs than requests.
        RequestError: a request does not fit the model.
        BackendError: the backend failed.
    """
    keep = pipeline.manifest.pruning.keep if settings.keep is None else settings.keep
    if keep == 1:
        raise SettingsError("keep is 1, which prunes nothing: choose one below to compare with it", options=("keep",))
    if settings.pairs is not None and settings.pairs < len(asks.requests):
        raise SettingsError(
            f"{settings.pairs} pairs do not ask all of {len(asks.requests)} questions: measure more, or ask fewer",
            options=("pairs", "limit"),
        )
    keeps = {"pruned": keep, "unpruned": 1.0}
    first = asks.requests[0]

    def ask(side: str, number: int) -> Run:
        return answer(pipeline, asks.requests[number % len(asks.requests)], keeps[side], settings.new_tokens)

    before = _load()
    memory = watch_memory(pipeline, first, keeps, settings.new_tokens)
    runs = run_pairs(ask, settings, len(asks.requests))
    prompts = _prompts(asks.requests, runs, settings.warmup)
    loops = _loops(ask, settings.hz, len(runs["pruned"]))
    pruned, unpruned = (_side(runs[side]) for side in SIDES)
    fastest = min(pruned.phases["end_to_end"].p50, unpruned.phases["end_to_end"].p50)
    found = find_meters() if meters is None else meters
    energy, notes = measure_energy(found, lambda: ask("pruned", 0), lambda: ask("unpruned", 0), fastest)
    ratios = _ratios(runs, promised_speedup(pipeline.manifest, prompts))
    return Latency(
        artefact=name,
        provider=pipeline.provider,
        dtype=pipeline.manifest.decoder.dtype,
        workload=_workload(pipeline, asks, settings, keep, prompts),
        warmup=settings.warmup,
        pruned=pruned,
        unpruned=unpruned,
        ratios=ratios,
        trends=tuple(_trends(runs)),
        selection=time_selection(pipeline, first, keep, prompts[0], FEWEST, settings.threads),
        loops=loops,
        memory=memory,
        energy=energy,
        dropped=prove_dropped(pipeline, first, keep),
        load=(*before, *_load()),
        cpus=os.cpu_count() or 1,
        notes=notes,
    )


def run_pairs(ask: Callable[[str, int], Run], settings: BenchSettings, requests: int = 1) -> dict[str, list[Run]]:
    """Pairs of the same request, pruned and unpruned, the order swapped from pair to pair; without the warm-up."""
    warm = _in_turn(ask, range(settings.warmup), "Warming up")
    pair = sum(warm[side][-1].phases["end_to_end"] for side in SIDES)
    first = settings.warmup
    return _in_turn(ask, range(first, first + settings.number_of_pairs(pair, requests)), "Measuring")


def _in_turn(ask: Callable[[str, int], Run], numbers: range, what: str) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}
    with progress(what, len(numbers)) as advance:
        for number in numbers:
            for side in SIDES if number % 2 else reversed(SIDES):
                runs[side].append(ask(side, number))
            advance(1)
    return runs


def _side(runs: Sequence[Run]) -> Side:
    columns = {name: tuple(round(run.phases[name], DIGITS) for run in runs) for name in (*PHASES, *SPANS)}
    phases = {name: spread_of([run.phases[name] for run in runs]) for name in (*PHASES, "rest", *SPANS)}
    steps = [run.steps for run in runs]
    if steps[0]:
        phases["step"] = spread_of([step for each in steps for step in each])
    medians = tuple(round(statistics.median(each), DIGITS) for each in zip(*steps, strict=True))
    cache = sum(run.result.cache_bytes for run in runs) / len(runs)
    return Side(**columns, steps=medians, phases=phases, cache_bytes=round(cache))


def _ratios(runs: Mapping[str, Sequence[Run]], promised: float) -> dict[str, Ratio]:
    ratios = {}
    for name in RATIOS:
        over, under = ([run.phases[name] for run in runs[side]] for side in ("unpruned", "pruned"))
        if min(under) > 0:  # an answer of one token has no decode
            found = paired_ratio(over, under)
            ratios[name] = Ratio(found.mean, found.low, found.high, promised if name == "prefill" else None)
    return ratios


def _trends(runs: Mapping[str, Sequence[Run]]) -> list[Trend]:
    found = []
    for side in SIDES:
        for name in TRENDS:
            change = trend([run.phases[name] for run in runs[side]])
            if change is not None:
                found.append(Trend(side, name, change))
    return found


def _loops(ask: Callable[[str, int], Run], hz: float | None, count: int) -> tuple[Loop, ...]:
    """The control loop of each side, in turns, so that a change of the machine's other work meets both."""
    if hz is None:
        return ()
    turns: dict[str, list[Loop]] = {side: [] for side in SIDES}
    for first in range(0, count, LOOP_TURN):
        for side in SIDES:
            turns[side].append(run_loop(side, hz, min(LOOP_TURN, count - first), partial(ask, side)))
    return tuple(joined(each) for each in turns.values())


def _prompts(requests: Sequence[Ask], runs: Mapping[str, Sequence[Run]], warmup: int) -> list[tuple[int, int, int]]:
    """Visual tokens, text tokens and kept visual tokens of the requests, each once, in their order.

    The runs that count begin where the warm-up left off.
    """
    results: list[Result] = [runs["pruned"][(i - warmup) % len(requests)].result for i in range(len(requests))]
    return [
        (result.visual_tokens, result.prompt_tokens - result.visual_tokens, result.visual_tokens_kept)
        for result in results
    ]


def _workload(
    pipeline: Pipeline, asks: Asks, settings: BenchSettings, keep: float, prompts: Sequence[tuple[int, int, int]]
) -> Workload:
    visual, text, kept = (sum(column) / len(prompts) for column in zip(*prompts, strict=True))
    return Workload(
        source=asks.source,
        questions=len(prompts),
        visual_tokens=visual,
        text_tokens=text,
        new_tokens=settings.new_tokens,
        layer=pipeline.manifest.pruning.layer,
        keep=keep,
        kept=kept,
    )


def _load() -> tuple[float, ...]:
    try:
        return (round(os.getloadavg()[0], 2),)
    except (AttributeError, OSError):  # Windows has none
        return ()
