"""Whether `calibrate --speedup 1.5` keeps its promise: each (layer, keep) that it would try, measured on a CPU.

    python -m tests.benchmarks.speedup_pairs -o docs/benchmarks/speedup_pairs.json

The model and the prompt are `cpu_speed.py`'s, in ONNX Runtime. Of each layer, the whole prefill and the pruned ones by
mmr and by coverage run in turn; a speed-up is the median of the ratios of neighbouring runs. On a machine that does
other work, the ratio of the least times is nearer to the truth.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iwp_export.calibrate.candidates import Budget, budget_pairs, candidate_layers
from iwp_export.pruning.settings import PruningSettings
from tests.benchmarks.cpu_model import (
    TEXT_TOKENS,
    Decoder,
    Shape,
    measure,
    ratios,
    spread,
    surroundings,
    work_folder,
    write_model,
)

WHOLE = "whole"
SELECTIONS: dict[str, dict[str, Any]] = {"mmr": {}, "coverage": {"select": "coverage"}}


def measured(checkpoint: Path, shape: Shape, layer: int, keep: float, threads: int, rounds: int) -> dict[str, Any]:
    """One pair: what was promised, and what each selection reaches."""
    calls: dict[str, Callable[[], object]] = {}
    for name, changes in SELECTIONS.items():
        decoder = Decoder(checkpoint, shape, PruningSettings(layer=layer, keep=keep).with_changes(**changes), threads)
        calls.setdefault(WHOLE, decoder.prefill(1.0))
        calls[name] = decoder.prefill()
    seconds = measure(calls, rounds)
    kept = PruningSettings(keep=keep).num_keep(shape.visual)
    promised = shape.cost.speedup(layer, kept)
    row: dict[str, Any] = {"layer": layer, "keep": round(keep, 4), "kept": kept, "promised": round(promised, 3)}
    row["whole_seconds"] = spread(seconds[WHOLE], 4)
    for name in SELECTIONS:
        reached = ratios(seconds, WHOLE, name)
        least = min(seconds[WHOLE]) / min(seconds[name])
        row[name] = {
            "speedup": spread(reached),
            "speedup_of_least_times": round(least, 3),
            "share_of_the_promise": spread([value / promised for value in reached]),
            "share_of_the_promise_by_least_times": round(least / promised, 3),
        }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speedup", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--work", type=Path, help="folder whose checkpoint and bundles are kept for another run")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    shape = Shape()
    layers = candidate_layers(range(shape.layers), shape.layers)
    pairs = budget_pairs(Budget("speedup", (args.speedup,)), layers, shape.cost)
    with work_folder(args.work) as folder:
        checkpoint = write_model(shape, folder)
        rows = {
            str(threads): [measured(checkpoint, shape, *pair, threads, args.rounds) for pair in pairs]
            for threads in args.threads
        }
    result = {
        "command": f"python -m tests.benchmarks.speedup_pairs --speedup {args.speedup:g}",
        "prompt": {"visual": shape.visual, "text": TEXT_TOKENS},
        "rounds": args.rounds,
        "by_threads": rows,
        **surroundings(),
    }
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
