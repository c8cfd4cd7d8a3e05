"""How far `iwp-export estimate` is off: against public measurements, and against runs on this CPU.

    python tests/benchmarks/estimate_check.py -o docs/benchmarks/estimate_check.json

Fits the shares of a device's peaks on some of the public figures, compares with the others, and fails if the constants
of `iwp_export.estimator.roofline` are not the fitted ones. The CPU's peaks are measured here with numpy; its runs are
those of `docs/benchmarks/cpu_speed.json`. `--no-cpu` leaves the CPU out.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is imported

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iwp_export.device.specs import DEVICES, GB, DeviceSpec
from iwp_export.estimator import roofline
from iwp_export.estimator.roofline import (
    FITTED_ON,
    Efficiency,
    Prompt,
    Share,
    WeightFormat,
    decode_work,
    efficiency_of,
    prefill_work,
)
from iwp_export.estimator.shape import LanguageShape
from iwp_export.tables import table
from tests.benchmarks.estimate_public import DART, FP16, PUBLIC, QWEN3_VL, Measurement

CPU_RUNS = Path(__file__).parents[2] / "docs" / "benchmarks" / "cpu_speed.json"
WIDENING = 1.15
"""How much further than the fitted figures a range reaches: they are of one device and one runtime."""
AT_PEAK = Efficiency(Share(1, 1, 1), Share(1, 1, 1))


def fit(measurements: Sequence[Measurement]) -> Efficiency:
    """The shares that the fitted figures reach, their mean, and a range that is wider on both sides."""

    def share(phase: str) -> Share:
        reached = [share_reached(each) for each in measurements if each.fitted and each.phase == phase]
        low, high = min(reached) / WIDENING, max(reached) * WIDENING
        return Share(round(low, 2), round(statistics.mean(reached), 2), round(high, 2))

    return Efficiency(share("prefill"), share("decode"))


def spread_elsewhere(measurements: Sequence[Measurement], typical: float) -> Share:
    """From the least to the most that prefills reach on other devices, around the fitted mean."""
    reached = [
        share_reached(each) for each in measurements if each.phase == "prefill" and each.device.name not in FITTED_ON
    ]
    return Share(math.floor(min(reached) * 100) / 100, typical, math.ceil(max(reached) * 100) / 100)


def share_reached(measurement: Measurement) -> float:
    """The part of the peak that a measurement reaches: of products in a prefill, of bandwidth in decoding."""
    return measurement.work.seconds(measurement.device, AT_PEAK).typical / measurement.seconds


def compare(measurement: Measurement) -> dict[str, Any]:
    """A measurement beside its estimate; the error is of the time."""
    span = measurement.work.seconds(measurement.device, efficiency_of(measurement.device, measurement.weights))
    if measurement.phase == "prefill":
        unit, shown = "ms", span.times(1000)
    else:
        unit, shown = "tokens/s", span.inverse()
    return {
        "what": f"{measurement.what}, {measurement.phase}",
        "tokens": measurement.context,
        "unit": unit,
        "measured": round(measurement.value, 2),
        "estimated": round(shown.typical, 2),
        "low": round(shown.low, 2),
        "high": round(shown.high, 2),
        "error": round(shown.typical / measurement.value - 1, 3),
        "in_range": bool(shown.low <= measurement.value <= shown.high),
        "share_of_peak": round(share_reached(measurement), 3),
        "role": role(measurement),
        "source": measurement.source,
    }


def role(measurement: Measurement) -> str:
    """What a figure is here for: the shares are fitted on it, it sets a range, or it is compared alone."""
    if measurement.fitted:
        return "fitted"
    elsewhere = measurement.phase == "prefill" and measurement.device.name not in FITTED_ON
    return "sets the range" if elsewhere else "checked"


def compare_pruning() -> dict[str, Any]:
    """Thor's speed-up of the prefill when half of 1,995 tokens go before layer 0."""
    prompts = (Prompt(0, tokens, 128, 0, 0) for tokens in (1995, 998))
    thor = DEVICES["thor"]
    times = [prefill_work(QWEN3_VL["4B"], each, FP16).seconds(thor, Efficiency()) for each in prompts]
    ratio = times[0].typical / times[1].typical
    return {
        "what": "Thor, Qwen3-VL-4B fp16, speed-up of the prefill by dropping half of 1,995 tokens before layer 0",
        "unit": "times",
        "measured": 1.95,
        "estimated": round(ratio, 3),
        "error": round(ratio / 1.95 - 1, 3),
        "role": "checked",
        "source": DART,
    }


def measure_cpu(threads: int) -> DeviceSpec:
    """This CPU as a device of so many threads: float32 products and bytes read by numpy, the best of several runs.

    One thread's products are measured in short calls, which find quiet moments on a busy machine, and multiplied. One
    thread reads a matrix that no cache holds, as a decode step reads weights; more threads share what it finds.
    """
    side = 512
    square = np.random.default_rng(0).standard_normal((side, side)).astype(np.float32)
    products = threads * 2 * side**3 / best(lambda: square @ square, 300)
    wide, row = np.ones((16384, 8192), np.float32), np.ones(8192, np.float32)
    read = wide.nbytes / best(lambda: wide @ row, 20)
    name = "this CPU"
    return DeviceSpec(name, name, products / 1e12, None, None, read / 1e9, 8 * GB, True, name, (name,), ("measured",))


def best(call: Callable[[], object], runs: int) -> float:
    """The shortest of some runs, in seconds, after one that does not count."""
    call()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def compare_cpu(efficiency: Efficiency) -> dict[str, Any]:
    """The CPU runs of a 12-layer model beside their estimate."""
    runs = json.loads(CPU_RUNS.read_text())
    load = round(os.getloadavg()[0], 2)
    cpu, shape = measure_cpu(runs["machine"]["threads"]), LanguageShape(12, 768, 2048, 768, 768, 32000)
    weights = WeightFormat("fp32", 32, head=32, value=4)
    prompt = runs["prompt"]
    kept = prompt["kept"] - prompt["text"]  # that file counts the text among the kept
    whole = Prompt(prompt["visual"], prompt["text"], 2, 0, prompt["visual"])
    pruned = Prompt(prompt["visual"], prompt["text"], 2, 4, kept)
    rows = {}
    for name, each, of in (
        ("prefill", whole, prefill_work),
        ("pruned prefill", pruned, prefill_work),
        ("decode", whole, decode_work),
        ("pruned decode", pruned, decode_work),
    ):
        work, measured = of(shape, each, weights), runs["median_seconds"][name]
        span = work.seconds(cpu, efficiency)
        rows[name] = {
            "measured_ms": round(measured * 1000, 1),
            "estimated_ms": round(span.typical * 1000, 1),
            "error": round(span.typical / measured - 1, 3),
            "at_peak_ms": round(work.seconds(cpu, AT_PEAK).typical * 1000, 1),
        }
    ratio = rows["prefill"]["estimated_ms"] / rows["pruned prefill"]["estimated_ms"]
    measured = runs["prefill_speedup_of_pruning"]
    return {
        "gflops_float32": round(cpu.fp16 * 1000, 1),
        "gigabytes_per_second": round(cpu.bandwidth, 1),
        "load_average_before": load,
        "runs": rows,
        "prefill_speedup": {
            "measured": measured,
            "estimated": round(ratio, 3),
            "error": round(ratio / measured - 1, 3),
        },
    }


def show(rows: Sequence[Mapping[str, Any]]) -> str:
    """The comparison as a table."""
    lines: list[tuple[str, ...]] = [("", "measured", "estimated", "range", "error", "inside", "share of peak")]
    for row in rows:
        span = f"{row['low']:.4g} to {row['high']:.4g}" if "low" in row else ""
        inside = ("yes" if row["in_range"] else "NO") if "in_range" in row else ""
        share = f"{row['share_of_peak']:.0%}" if "share_of_peak" in row else ""
        name = f"{row['what']} ({row['role']})"
        shown = (f"{row['measured']:.4g} {row['unit']}", f"{row['estimated']:.4g}")
        lines.append((name, *shown, span, f"{row['error']:+.0%}", inside, share))
    return table(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, compare, print; 1 if the package's constants are not the fitted ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--no-cpu", action="store_true")
    args = parser.parse_args(argv)
    fitted = fit(PUBLIC)
    elsewhere = spread_elsewhere(PUBLIC, fitted.compute.typical)
    rows = [*(compare(each) for each in PUBLIC), compare_pruning()]
    print(f"fitted: {fitted}, elsewhere {elsewhere}\n{show(rows)}")
    result = {
        "command": "python tests/benchmarks/estimate_check.py -o docs/benchmarks/estimate_check.json",
        "fitted": {"compute": vars(fitted.compute), "memory": vars(fitted.memory), "elsewhere": vars(elsewhere)},
        "widening": WIDENING,
        "public": rows,
    }
    if not args.no_cpu:
        result["cpu"] = compare_cpu(fitted)
        print(json.dumps(result["cpu"], indent=2))
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    if (fitted, elsewhere) != (Efficiency(roofline.COMPUTE, roofline.MEMORY), roofline.ELSEWHERE):
        print("iwp_export/estimate/roofline.py has other shares", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
