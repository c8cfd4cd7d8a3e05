"""Time and memory of calibrating a checkpoint of a 7B model's shape in bfloat16 on the CPU.

    python -m calibration.random_checkpoint build/llava-7b-random
    python -m tests.benchmarks.calibrate_7b build/llava-7b-random -o docs/benchmarks/calibrate_7b.json

Weights are random, so the figures are of time and memory alone, and the recipe means nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import tempfile
from pathlib import Path

from iwp_export.bundle.recipe import read_recipe
from tests.benchmarks.export_7b import measure_command

SAMPLES = Path("iwp_export/assets/tiny_llava_samples/questions.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[28], help="layers to try (default: 28)")
    parser.add_argument("--samples", type=int, default=2, help="default: 2")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "7b.recipe.json"
        options = ["--data", str(SAMPLES), "--samples", str(args.samples), "--max-new-tokens", "2"]
        options += ["--layers", *map(str, args.layers), "--dtype", "bfloat16", "-o", str(recipe)]
        used = measure_command(["-m", "iwp_export.cli.main", "calibrate", str(args.checkpoint), *options])
        made = read_recipe(recipe)
    result = {
        "command": "python -m tests.benchmarks.calibrate_7b CHECKPOINT -o JSON",
        "calibration": f"iwp-export calibrate CHECKPOINT {shlex.join(options[:-2])}",
        **used,
        "checkpoint_bytes": sum(file.stat().st_size for file in args.checkpoint.glob("*.safetensors")),
        "samples": made.data.samples,
        "settings_tried": len(made.candidates),
        "runs": made.search.runs,
        "finite": all(abs(candidate.kl) < float("inf") for candidate in made.candidates),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
    }
    print(json.dumps(result, indent=2))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
