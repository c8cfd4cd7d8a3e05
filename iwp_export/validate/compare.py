"""Compares ways to choose visual tokens: same model, layer, budget and prompts.

python -m iwp_export.validate.compare tiny-llava.bundle --data questions.jsonl -o methods.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from iwp_export.errors import SettingsError
from iwp_export.pruning.settings import PruningSettings
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.validate import entry
from iwp_export.validate.accuracy import measure_accuracy
from iwp_export.validate.questions import MAX_NEW_TOKENS, Question
from iwp_export.validate.reference import Reference
from iwp_export.validate.rivals import methods

KEEPS = (0.5, 0.353, 0.222, 0.111)
RANDOM_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class MethodAccuracy:
    """Share of right answers, by kind of question and of all, of one method at one layer and budget."""

    layer: int
    method: str
    keep: float
    accuracy: Mapping[str, float]


def compare_methods(
    pipeline: Pipeline,
    reference: Reference,
    questions: Sequence[Question],
    settings: PruningSettings,
    keeps: Sequence[float] = KEEPS,
    only: Sequence[str] = (),
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Iterator[MethodAccuracy]:
    """Accuracy of each method at each budget, by the torch reference; `random` is a mean over `RANDOM_SEEDS`.

    Args:
        pipeline: the artefact, which gives the processor.
        reference: its checkpoint.
        questions: with answers.
        settings: IWP's, and the layer at which every method chooses.
        keeps: the budgets.
        only: names of methods; empty for all.
        max_new_tokens: length of an answer at most.

    Raises:
        SettingsError: a method that does not exist, or a layer at which the model cannot be pruned.
        DataError: a question without an answer.
    """
    names = list(methods(settings))
    if unknown := set(only) - set(names):
        raise SettingsError(f"no method {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    layers = reference.family.prunable_layers(reference.model.config)
    if settings.layer not in layers:
        allowed = f"choose layer {layers[0]} to {layers[-1]}"
        raise SettingsError(f"the model cannot be pruned at layer {settings.layer}; {allowed}")
    for name in only or names:
        for keep in keeps:
            draws = []
            for seed in RANDOM_SEEDS if name == "random" else RANDOM_SEEDS[:1]:
                method = methods(settings, seed)[name]
                chosen = reference.pruned(pipeline, method.settings, method.select)
                draws.append(measure_accuracy(chosen, questions, keep, max_new_tokens).shares)
            mean = {kind: round(sum(draw[kind] for draw in draws) / len(draws), 4) for kind in draws[0]}
            yield MethodAccuracy(settings.layer, name, keep, mean)


def changed(settings: PruningSettings, changes: Sequence[str]) -> PruningSettings:
    """Settings with some fields given as NAME=VALUE.

    Raises:
        SettingsError: no such field, or a value that it does not take.
    """
    known = {field.name for field in fields(settings)}
    values: dict[str, Any] = {}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in known:
            raise SettingsError(f"no setting {name!r}; there are: {', '.join(sorted(known))}")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
    return replace(settings, **values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = entry.make_parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", help="where the checkpoint is (default: where the artefact says)")
    add("--keep", type=float, nargs="+", default=KEEPS, help="budgets (default: %(default)s)")
    add("--layers", type=int, nargs="+", help="pruning layers (default: the artefact's)")
    add("--methods", nargs="+", default=[], help="names of methods (default: all)")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other pruning settings")
    return entry.run(parser, _execute, "compare", arguments)


def _execute(args: argparse.Namespace) -> int:
    questions, pipeline = entry.open_questions(args), entry.open_pipeline(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = changed(pipeline.manifest.pruning, args.set)
    reference = Reference.of(pipeline.manifest, args.checkpoint)
    whole = measure_accuracy(reference.pruned(pipeline, settings), questions, 1.0, args.max_new_tokens)
    rows = []
    for layer in args.layers or [settings.layer]:
        at_layer = replace(settings, layer=layer)
        for row in compare_methods(
            pipeline, reference, questions, at_layer, args.keep, args.methods, args.max_new_tokens
        ):
            rows.append(row)
            print(f"layer {row.layer}  {row.method:15} keep {row.keep:5}  {dict(row.accuracy)}", flush=True)
    report = {
        "command": args.command,
        "changes": args.set,
        "questions": len(questions),
        "random": f"mean of {len(RANDOM_SEEDS)} draws",
        "keep 1": whole.shares,
        "methods": [asdict(row) for row in rows],
        "versions": entry.versions(),
    }
    entry.write_report(report, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
