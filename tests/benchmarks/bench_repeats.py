"""Whether benches that are repeated agree: each ratio should lie in the intervals of the others.

    python -m tests.benchmarks.bench_repeats tiny-llava.bundle --times 3 -o docs/benchmarks/bench_repeats.json

Each bench is a process of its own, as a user starts it. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from iwp_export.reports.report import Report, read_report


def run_bench(bundle: Path, options: list[str], folder: Path) -> Report:
    """One bench in a process of its own."""
    file = folder / "bench.json"
    command = [sys.executable, "-m", "iwp_export.cli.main", "bench", str(bundle), *options, "-o", str(file), "--force"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read_report(file)


def agreement(reports: list[Report]) -> dict[str, Any]:
    """By phase: the ratios with their intervals, how often one lies in another's, and how far they scatter."""
    found: dict[str, Any] = {}
    latencies = [report.latency for report in reports if report.latency is not None]
    for phase in latencies[0].ratios:
        ratios = [latency.ratios[phase] for latency in latencies]
        pairs = list(itertools.permutations(ratios, 2))
        found[phase] = {
            "ratios": [[round(number, 4) for number in (each.value, each.low, each.high)] for each in ratios],
            "covered": sum(one.low <= other.value <= one.high for one, other in pairs),
            "of": len(pairs),
            "standard deviation of the logarithm": round(statistics.stdev(math.log(each.value) for each in ratios), 5),
        }
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--times", type=int, default=3, help="default: 3")
    parser.add_argument("--options", default="--threads 1", help="of the bench (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = shlex.split(args.options)
        reports = [run_bench(args.bundle, options, Path(folder)) for _ in range(args.times)]
    first = reports[0].latency
    assert first is not None
    result = {
        "command": f"python -m tests.benchmarks.bench_repeats {shlex.join(sys.argv[1:])}",
        "promised prefill": first.ratios["prefill"].promised,
        "pairs": [report.latency.pairs for report in reports if report.latency],
        "load before each": [report.latency.load[:1] for report in reports if report.latency],
        "phases": agreement(reports),
        "versions": dict(reports[0].state.packages),
    }
    print(json.dumps(result, indent=2))
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
