"""Compares ways to choose visual tokens on the held-out questions: same model, layer, budget and prompts.

python -m calibration.tiny_llava.compare tiny-llava.bundle -o docs/benchmarks/methods_tiny_llava.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import iwp_export
from calibration.tiny_llava.heldout import Question, load
from iwp_export.backends.torch.session import TorchSession
from iwp_export.export.checkpoint import open_checkpoint
from iwp_export.runtime.model import LoadedModel
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.validate.rivals import Method, methods

KEEPS = (0.5, 0.353, 0.222, 0.111)
RANDOM_SEEDS = 3


def accuracy(pipeline: Pipeline, questions: Sequence[Question], keep: float) -> dict[str, float]:
    """Share of right answers, by kind of question and of all."""
    right: dict[str, list[bool]] = defaultdict(list)
    for question in questions:
        text = pipeline(question.image, question.question, max_new_tokens=4, keep=keep).text
        for kind in (question.kind, "all"):
            right[kind].append(text == question.answer)
    return {kind: round(sum(values) / len(values), 4) for kind, values in sorted(right.items())}


def run(
    bundle: Path, layers: Sequence[int], limit: int | None, only: Sequence[str] = (), changes: Sequence[str] = ()
) -> dict[str, Any]:
    """Accuracy of each method at each layer and budget, by the torch reference and the bundle's own processor.

    Args:
        bundle: what gives the settings and the processor.
        layers: where to prune.
        limit: how many questions; None for all.
        only: names of methods; empty for all.
        changes: NAME=VALUE for fields of the settings.
    """
    pipeline = iwp_export.load(str(bundle))
    manifest = pipeline.manifest
    checkpoint = open_checkpoint(manifest.model.source)
    session = TorchSession(checkpoint.load_model(), checkpoint.family, manifest.pruning)
    questions = load(limit=limit)

    def with_method(method: Method) -> Pipeline:
        shown = replace(manifest, pruning=method.settings)
        return Pipeline(LoadedModel(shown, pipeline.processor, session.choosing(method.settings, method.select)))

    whole = accuracy(with_method(Method(manifest.pruning)), questions, 1.0)
    rows = []
    for layer in layers:
        settings = replace(manifest.pruning, layer=layer, **dict(map(_parse_change, changes)))
        for name, method in methods(settings).items():
            if only and name not in only:
                continue
            for keep in KEEPS:
                draws = RANDOM_SEEDS if name == "random" else 1
                variants = [method, *(methods(settings, seed)[name] for seed in range(1, draws))]
                each = [accuracy(with_method(variant), questions, keep) for variant in variants]
                mean = {kind: round(sum(a[kind] for a in each) / draws, 4) for kind in each[0]}
                rows.append({"layer": layer, "method": name, "keep": keep, "accuracy": mean})
                print(f"layer {layer}  {name:15} keep {keep:5}  {mean}", flush=True)
    return {
        "command": "python -m calibration.tiny_llava.compare BUNDLE",
        "changes": list(changes),
        "questions": len(questions),
        "random": f"mean of {RANDOM_SEEDS} draws",
        "keep 1": whole,
        "methods": rows,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")},
    }


def _parse_change(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[4], help="pruning layers (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", default=[], help="names of methods (default: all)")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other pruning settings")
    parser.add_argument("--questions", type=int, help="how many (default: all)")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a model this small is slower with more
    report = run(args.bundle, args.layers, args.questions, args.methods, args.set)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
