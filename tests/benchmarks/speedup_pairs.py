"""Whether `calibrate --speedup 1.5` keeps its promise: each (layer, keep) that it would try, measured on a CPU.

    python -m tests.benchmarks.speedup_pairs -o docs/benchmarks/speedup_pairs.json

The model is `cpu_speed.py`'s, in ONNX Runtime; each setting is exported and measured as `iwp-export bench` does, with
answers of one token.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from iwp_export.calibrator.search import Budget, budget_pairs, candidate_layers
from iwp_export.latency.bench import measure_latency
from iwp_export.latency.figures import Latency
from iwp_export.latency.requests import choose_questions
from iwp_export.pruning.settings import PruningSettings
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.settings import BenchSettings
from tests.benchmarks.cpu_model import Shape, exported, surroundings, work_folder, write_model

SELECTIONS: dict[str, dict[str, Any]] = {"mmr": {}, "coverage": {"select": "coverage"}}
PROMPT = "what is the red digit ?"


def measured(checkpoint: Path, shape: Shape, layer: int, keep: float, threads: int, pairs: int) -> dict[str, Any]:
    """One pair: what was promised, and what each selection reaches."""
    row: dict[str, Any] = {"layer": layer, "keep": round(keep, 4)}
    side = 14 * shape.grid
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    for name, changes in SELECTIONS.items():
        settings = PruningSettings(layer=layer, keep=keep).with_changes(**changes)
        bundle = exported(checkpoint, settings)
        chosen = BenchSettings(new_tokens=1, pairs=pairs, warmup=1, threads=threads)
        pipeline = Pipeline.open(bundle, threads=threads)
        asked = choose_questions(pipeline.manifest, [image], PROMPT, None, 1)
        latency = measure_latency(pipeline, asked, chosen, meters=[])
        row[name] = reached(latency)
    print(json.dumps(row), flush=True)
    return row


def reached(latency: Latency) -> dict[str, Any]:
    """The prefill's speed-up with its interval and its promise, and its share of that."""
    found, work = latency.ratios["prefill"], latency.workload
    return {
        "prompt": {"visual": work.visual_tokens, "text": work.text_tokens, "kept": work.kept},
        "speedup": {**asdict(found), "promised": latency.promised},
        "share_of_the_promise": round(found.mean / latency.promised, 3),
        "prefill_seconds": {side: asdict(getattr(latency, side).phases["prefill"]) for side in ("unpruned", "pruned")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speedup", type=float, default=1.5)
    parser.add_argument("--pairs", type=int, default=20)
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
            str(threads): [measured(checkpoint, shape, *pair, threads, args.pairs) for pair in pairs]
            for threads in args.threads
        }
    result = {
        "command": f"python -m tests.benchmarks.speedup_pairs --speedup {args.speedup:g}",
        "pairs": args.pairs,
        "by_threads": rows,
        **surroundings(),
    }
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
