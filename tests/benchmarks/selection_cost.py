"""What the choice of tokens takes of a pruned prefill, on ONNX Runtime's CPU provider.

    python -m tests.benchmarks.selection_cost -o docs/benchmarks/selection_cost.json

The model and the prompt are `cpu_speed.py`'s: 12 layers x 768, 576 visual and 32 text tokens, layer 4, keep 0.3. In
every round all prefills and the op alone, with each selection, run in turn. The op's share is its time over that of
the prefill with it; `prefill_over_default` is a prefill over the one with the paper's rounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from iwp_export.pruning.settings import PruningSettings
from tests.benchmarks.cpu_model import (
    TEXT_TOKENS,
    Decoder,
    Shape,
    measure,
    open_session,
    ratios,
    spread,
    surroundings,
    work_folder,
    write_model,
)
from tests.pruning.cases import op_model, random_case

BASE = PruningSettings(layer=4, keep=0.3)
DEFAULT = "mmr, chunk 2, growth 2"
SELECTIONS = {
    DEFAULT: BASE,
    "mmr, chunk 1, growth 1": BASE.with_changes(chunk=1, growth=1),
    "coverage": BASE.with_changes(select="coverage"),
}


def op_alone(shape: Shape, settings: PruningSettings, threads: int) -> Callable[[], object]:
    """A call of the op on random keys and values of the model's shape."""
    case = random_case(0, shape.visual, text=TEXT_TOKENS, kv_heads=shape.heads, size=shape.head_size)
    session = open_session(op_model(case, settings).SerializeToString(), threads)
    return partial(session.run, None, case.feeds(settings.num_keep(shape.visual)))


def measured(checkpoint: Path, shape: Shape, threads: int, rounds: int) -> dict[str, Any]:
    """The figures with a number of threads."""
    calls: dict[str, Callable[[], object]] = {}
    for name, settings in SELECTIONS.items():
        calls[name] = Decoder(checkpoint, shape, settings, threads).prefill()
        calls[f"op: {name}"] = op_alone(shape, settings, threads)
    seconds = measure(calls, rounds, {name: 3 for name in calls if name.startswith("op: ")})
    return {
        name: {
            "prefill_seconds": spread(seconds[name], 4),
            "op_seconds": spread(seconds[f"op: {name}"], 5),
            "share_of_prefill": spread(ratios(seconds, f"op: {name}", name), 4),
            "prefill_over_default": spread(ratios(seconds, name, DEFAULT)),
        }
        for name in SELECTIONS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--work", type=Path, help="folder whose checkpoint and bundles are kept for another run")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    shape = Shape(layers=args.layers)
    with work_folder(args.work) as folder:
        checkpoint = write_model(shape, folder)
        runs = {str(threads): measured(checkpoint, shape, threads, args.rounds) for threads in args.threads}
    kept = BASE.num_keep(shape.visual)
    result = {
        "command": "python -m tests.benchmarks.selection_cost",
        "prompt": {"visual": shape.visual, "text": TEXT_TOKENS, "kept": kept + TEXT_TOKENS},
        "rounds": args.rounds,
        "by_threads": runs,
        **surroundings(),
    }
    print(json.dumps(result, indent=2))
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
