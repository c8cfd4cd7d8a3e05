"""A bench: pruned and unpruned requests in turn, one at a time, and what else is known of them. Needs no torch."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import psutil

from iwp_export.bundle.manifest import Manifest
from iwp_export.device import gpu, machine
from iwp_export.device.meters import PowerMeter, find_meters
from iwp_export.errors import BackendError, IwpError, SettingsError
from iwp_export.latency.figures import (
    PHASES,
    SIDES,
    SPANS,
    Energy,
    Latency,
    Side,
    Workload,
    joined,
    paired_ratio,
    spread_of,
)
from iwp_export.latency.requests import Run, answer, prove_dropped
from iwp_export.progress import progress
from iwp_export.pruning.cost import PrefillCost
from iwp_export.questions import DataSet
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.settings import RUNS_FOR_P99, BenchSettings

FEWEST_PAIRS, MOST_PAIRS, SECONDS = 40, 200, 30.0
"""Pairs where the caller does not say: as many as take so long, within these numbers."""
DIGITS = 7
"""Of a second, in a report: a tenth of a microsecond."""
ON_THE_CPU = ("cpu", "torch", "openvino", "xnnpack", "qnn", "coreml")
"""Providers of which an NVIDIA GPU's memory says nothing."""
METER_SECONDS, METER_TURNS, MOST_ANSWERS = 2.0, 3, 1000
"""Of a measurement of energy: sensors refresh every 0.01 to 0.1 s."""
CHILD = "import sys, pathlib; from iwp_export.latency.bench import run_child; run_child(pathlib.Path(sys.argv[1]))"


def measure_latency(
    pipeline: Pipeline,
    asked: DataSet,
    settings: BenchSettings,
    meters: Sequence[PowerMeter] | None = None,
) -> Latency:
    """Measure an artefact in this process; nothing else should run on the machine.

    Memory comes first, while the backend has not taken any for earlier runs, then the pairs; the rest follows.

    Args:
        pipeline: the artefact.
        asked, settings: the requests, which are asked in turn, and how to measure.
        meters: power sensors; None is this machine's.

    Raises:
        SettingsError: the keep ratio is 1, so that there is nothing to compare, or there are fewer pairs than requests.
        RequestError: a request does not fit the model.
        BackendError: the backend failed.
    """
    manifest, questions = pipeline.manifest, asked.questions
    keep = _check_keep(manifest, settings, len(questions))
    keeps = {"pruned": keep, "unpruned": 1.0}  # the least first: a backend may keep the memory that it once took

    def ask(side: str, number: int) -> Run:
        return answer(pipeline, questions[number % len(questions)], keeps[side], settings.new_tokens)

    load = psutil.getloadavg()[0] / (os.cpu_count() or 1)
    memory = {side: _watch_memory(pipeline.provider, partial(ask, side, 0)) for side in keeps}
    runs = run_pairs(ask, settings, len(questions))
    pruned, unpruned = (_side(runs[side], *memory[side]) for side in ("pruned", "unpruned"))
    results = [run.result for run in runs["pruned"]]
    prompts = [(each.visual_tokens, each.prompt_tokens, each.visual_tokens_kept) for each in results]
    visual, tokens, kept = (sum(column) / len(prompts) for column in zip(*prompts, strict=True))
    work = asked.name, len(questions), visual, tokens - visual, settings.new_tokens, manifest.pruning.layer, keep, kept
    fastest = min(pruned.times["end_to_end"])
    energy, notes = measure_energy(find_meters() if meters is None else meters, ask, fastest)
    return Latency(
        workload=Workload(*work),
        warmup=settings.warmup,
        pruned=pruned,
        unpruned=unpruned,
        ratios={
            phase: paired_ratio(unpruned.times[phase], pruned.times[phase])
            for phase in ("prefill", *(["decode"] if settings.new_tokens > 1 else []), *SPANS)
        },
        promised=promised_speedup(manifest, prompts),
        processes=1,
        energy=energy,
        dropped=prove_dropped(pipeline, questions[0], keep),
        load=round(load, 2),
        notes=tuple(notes),
    )


def _check_keep(manifest: Manifest, settings: BenchSettings, questions: int) -> float:
    keep = manifest.pruning.keep if settings.keep is None else settings.keep
    if keep == 1:
        raise SettingsError("keep is 1, which prunes nothing: choose one below to compare with it", options=("keep",))
    if settings.pairs is not None and settings.pairs < questions:
        raise SettingsError(
            f"{settings.pairs} pairs do not ask all of {questions} questions: measure more, or ask fewer",
            options=("pairs", "limit"),
        )
    return keep


def run_pairs(ask: Callable[[str, int], Run], settings: BenchSettings, questions: int = 1) -> dict[str, list[Run]]:
    """Pairs of the same request, pruned and unpruned, the order swapped from pair to pair; without the warm-up."""

    def in_turn(numbers: range, what: str) -> dict[str, list[Run]]:
        runs: dict[str, list[Run]] = {side: [] for side in SIDES}
        with progress(what, len(numbers)) as advance:
            for number in numbers:
                for side in SIDES if number % 2 else reversed(SIDES):
                    runs[side].append(ask(side, number))
                advance(1)
        return runs

    warm = in_turn(range(settings.warmup), "Warming up")
    seconds = sum(warm[side][-1].times["end_to_end"] for side in SIDES)
    pairs = settings.pairs or number_of_pairs(seconds, questions, settings.max_p99_ms is not None)
    return in_turn(range(settings.warmup, settings.warmup + pairs), "Measuring")


def number_of_pairs(seconds: float, questions: int, needs_p99: bool) -> int:
    """As many pairs of so many seconds as take `SECONDS`, so that each of the questions is asked."""
    least = max(RUNS_FOR_P99 if needs_p99 else FEWEST_PAIRS, questions)
    return max(least, min(MOST_PAIRS, round(SECONDS / max(seconds, SECONDS / MOST_PAIRS))))


def _side(runs: Sequence[Run], peak: int | None, used: int | None) -> Side:
    times = {name: tuple(round(run.times[name], DIGITS) for run in runs) for name in (*PHASES, *SPANS)}
    phases = {name: spread_of([run.times[name] for run in runs]) for name in times}
    if runs[0].steps:
        phases["step"] = spread_of([step for run in runs for step in run.steps])
    return Side(times, phases, round(sum(run.result.cache_bytes for run in runs) / len(runs)), peak, used)


def promised_speedup(manifest: Manifest, prompts: Sequence[tuple[int, int, int]]) -> float:
    """Multiply-adds of unpruned prefills over those of pruned ones; of each prompt its tokens: visual, all, kept."""
    decoder, layer = manifest.decoder, manifest.pruning.layer
    query, key_value = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    sizes = decoder.layers, decoder.hidden_size, decoder.intermediate_size, query, key_value, decoder.vocab_size
    costs = [(PrefillCost(*sizes, visual, tokens - visual), visual, kept) for visual, tokens, kept in prompts]
    whole = sum(cost.operations(layer, visual) for cost, visual, _ in costs)
    return whole / sum(cost.operations(layer, kept) for cost, _, kept in costs)


def _watch_memory(provider: str, ask: Callable[[], object]) -> tuple[int | None, int | None]:
    """The process's peak during a request, and what is in use on the GPU after it."""
    is_watched = machine.reset_peak()  # else the peak is that of the process's whole life, reading weights included
    ask()
    used = gpu.gpu_used_bytes() if provider.lower() not in ON_THE_CPU else None
    return machine.peak_bytes() if is_watched else None, used


def measure_energy(
    meters: Sequence[PowerMeter], ask: Callable[[str, int], object], seconds: float
) -> tuple[tuple[Energy, ...], list[str]]:
    """Joules of an answer, pruned and unpruned in turn, by one meter after the other, and why some did not measure.

    `ask` answers a side's request of a number; the fastest answer takes so many `seconds`.
    """
    answers = max(1, math.ceil(METER_SECONDS / max(seconds, METER_SECONDS / MOST_ANSWERS)))
    found, notes = [], [] if meters else ["joules not measured: no power sensor"]
    for meter in meters:
        joules = dict.fromkeys(SIDES, 0.0)
        for side in METER_TURNS * SIDES:
            with meter.measure() as reading:
                for _ in range(answers):
                    ask(side, 0)
            if reading.problem:
                notes.append(f"joules of {meter.name} not measured: {reading.problem}")
                break
            joules[side] += (reading.joules or 0.0) / answers / METER_TURNS
        else:
            found.append(Energy(meter.name, meter.scope, **joules))
    return tuple(found), notes


def measure_repeatedly(path: Path, asked: DataSet, settings: BenchSettings) -> Latency:
    """Measure an artefact in `settings.repeat` fresh processes, one after the other; see `joined`.

    What differs from one start of a process to the next, such as where memory lies, is then in the ratios' intervals.

    Args:
        path: the artefact, which each process opens.
        asked, settings: see `measure_latency`.

    Raises:
        BackendError: a process ended without a result. Else as `measure_latency`, and `Pipeline.open`.
    """
    found = []
    for number in range(settings.repeat):
        with tempfile.TemporaryDirectory() as folder, progress(f"Process {number + 1} of {settings.repeat}"):
            file = Path(folder) / "latency.pickle"
            command, job = [sys.executable, "-c", CHILD, str(file)], pickle.dumps((path, asked, settings))
            done = subprocess.run(command, input=job, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            if not file.exists():
                last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
                raise BackendError(f"a process of the bench ended with code {done.returncode}: {last}")
            result: Latency | IwpError = pickle.loads(file.read_bytes())
        if isinstance(result, IwpError):
            raise result
        found.append(result)
    return joined(found)


def run_child(result: Path) -> None:
    """A process of `measure_repeatedly`: reads its job from standard input and writes a `Latency` or the error."""
    path, asked, settings = pickle.loads(sys.stdin.buffer.read())
    found: Latency | IwpError
    try:
        pipeline = Pipeline.open(path, provider=settings.provider, threads=settings.threads)
        found = measure_latency(pipeline, asked, settings)
    except IwpError as error:
        found = error
    result.write_bytes(pickle.dumps(found))
