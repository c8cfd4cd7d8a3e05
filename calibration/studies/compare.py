"""Compares ways to choose visual tokens: same model, layer, budget and prompts.

python -m calibration.studies.compare tiny-llava.bundle --data questions.jsonl -o methods.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from calibration.studies.rivals import methods
from calibration.studies.seen import Method, RivalSession
from iwp_export.backends.torch.session import TorchSession
from iwp_export.bundle.recipe import read_recipe
from iwp_export.device.machine import package_versions
from iwp_export.errors import DataError, IwpError, SettingsError
from iwp_export.exporter.live import limit_threads, open_live
from iwp_export.exporter.plan import plan_export
from iwp_export.pruning.settings import PruningSettings
from iwp_export.questions import MAX_NEW_TOKENS, Question, read_questions
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.view import terminal
from iwp_export.view.figures import interval, percent
from iwp_export.view.html import write_page
from iwp_export.view.view import Axis, Chart, Column, Series, Table, View

KEEPS = (0.5, 0.353, 0.222, 0.111)
RANDOM_SEEDS = (0, 1, 2)
CALIBRATED = "iwp calibrated"
"""The method with the settings of a recipe."""
ALL = "all"
"""The kind that holds every question."""


@dataclass(frozen=True)
class MethodAccuracy:
    """Share of right answers, by kind of question and of all, of one method at one budget.

    `layer` is the one at whose input tokens are dropped; 0 for methods that work before it. `interval` is the 95 %
    interval of the share of all; for the mean of several draws, that of a single one, which is wider.
    """

    layer: int
    method: str
    keep: float
    accuracy: Mapping[str, float]
    interval: tuple[float, float]


def right_shares(
    pipeline: Pipeline, questions: Sequence[Question], keep: float, max_new_tokens: int = MAX_NEW_TOKENS
) -> dict[str, float]:
    """Share of answers that are right to the letter, by kind of question and of all.

    Raises:
        DataError: a question without an answer.
        RequestError: a question cannot be asked.
    """
    right: dict[str, list[bool]] = {}
    for question in questions:
        if not question.answers:
            raise DataError("accuracy needs questions with an `answer`")
        found = pipeline(list(question.images), question.prompt, max_new_tokens=max_new_tokens, keep=keep)
        for kind in filter(None, (question.kind, ALL)):
            right.setdefault(kind, []).append(found.text in question.answers)
    right[ALL] = right.pop(ALL)  # the last column
    return {kind: round(sum(each) / len(each), 4) for kind, each in right.items()}


def with_method(pipeline: Pipeline, session: TorchSession, method: Method) -> Pipeline:
    """An artefact's pipeline with a checkpoint in torch in the place of its graphs, pruned by a method."""
    manifest = replace(pipeline.manifest, pruning=method.settings)
    return Pipeline(manifest, pipeline.processor, RivalSession(session, method))


def compare_methods(
    pipeline: Pipeline,
    session: TorchSession,
    questions: Sequence[Question],
    settings: PruningSettings,
    keeps: Sequence[float] = KEEPS,
    only: Sequence[str] = (),
    max_new_tokens: int = MAX_NEW_TOKENS,
    layers: Sequence[int] = (),
    calibrated: PruningSettings | None = None,
) -> Iterator[MethodAccuracy]:
    """Accuracy of each method at each layer and budget, by the torch reference.

    `random` is a mean over `RANDOM_SEEDS`. Methods that work before layer 0 are run once, for all layers.

    Args:
        pipeline: the artefact, which gives the processor.
        session: its checkpoint.
        questions: with answers.
        settings: IWP's.
        keeps: the budgets.
        only: names of methods; empty for all that the model allows.
        max_new_tokens: length of an answer at most.
        layers: where the methods drop tokens; empty for the settings' layer.
        calibrated: settings that were chosen from data, measured at their own layer as `CALIBRATED`.

    Raises:
        SettingsError: see `refusals`.
        DataError: a question without an answer.
    """
    at_layers = [replace(settings, layer=layer) for layer in layers or (settings.layer,)]
    refused = [refusals(session, at_layer, only) for at_layer in at_layers]

    def measured(name: str, keep: float, draws: Sequence[Method]) -> MethodAccuracy:
        found = [right_shares(with_method(pipeline, session, each), questions, keep, max_new_tokens) for each in draws]
        mean = {kind: round(sum(draw[kind] for draw in found) / len(found), 4) for kind in found[0]}
        low, high = interval(mean[ALL], len(questions))
        layer = 0 if draws[0].condense else draws[0].settings.layer
        return MethodAccuracy(layer, name, keep, mean, (round(low, 4), round(high, 4)))

    for number, at_layer in enumerate(at_layers):
        for name, first in methods(at_layer).items():
            if name not in (only or [name]) or name in refused[number] or (number and first.condense):
                continue
            seeds = RANDOM_SEEDS if name == "random" else RANDOM_SEEDS[:1]
            for keep in keeps:
                yield measured(name, keep, [methods(at_layer, seed)[name] for seed in seeds])
    if calibrated is not None:
        for keep in keeps:
            yield measured(CALIBRATED, keep, [Method(calibrated)])


def refusals(session: TorchSession, settings: PruningSettings, only: Sequence[str] = ()) -> dict[str, str]:
    """Methods that cannot be run on this model at this layer, and why.

    Raises:
        SettingsError: one of them is among `only`, a method does not exist, or the model cannot be pruned there.
    """
    known = methods(settings)
    if unknown := set(only) - set(known):
        raise SettingsError(f"no method {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    session.family.require_layer(session.model.config, settings.layer)
    found = {name: reason for name, method in known.items() if (reason := method.refusal(session.model))}
    for name in found.keys() & set(only):
        raise SettingsError(f"{name} cannot be run here: {found[name]}")
    return found


def view(rows: Sequence[MethodAccuracy], whole: Mapping[str, float], questions: int) -> View:
    """A table and a chart for each budget, the best method first, under the accuracy at keep 1."""
    kinds = list(whole)
    titles = ("layer", *kinds, f"{ALL}, 95 % interval")
    low, high = interval(whole[ALL], questions)
    tables, charts = [], []
    for keep in dict.fromkeys(row.keep for row in rows):
        at_keep = sorted((row for row in rows if row.keep == keep), key=lambda row: -row.accuracy[ALL])
        columns: list[Column | str] = [f"keep {keep:g}", *(Column(title, number=True) for title in titles)]
        lines = [
            (row.method, row.layer, *_shares(row.accuracy, kinds), " to ".join(map(percent, row.interval)))
            for row in at_keep
        ]
        tables.append(Table(columns, [("keep 1", "", *_shares(whole, kinds), ""), *lines]))
        points = Series(
            "right answers",
            tuple(float(place) for place in range(len(at_keep) + 1)),
            (whole[ALL], *(row.accuracy[ALL] for row in at_keep)),
            low=(low, *(row.interval[0] for row in at_keep)),
            high=(high, *(row.interval[1] for row in at_keep)),
            labels=("every token", *(f"{row.method}, layer {row.layer}" for row in at_keep)),
        )
        title = f"Right answers of each method at keep {keep:g}, with 95 % intervals"
        axes = Axis("place", "whole"), Axis(f"right of {questions} answers", "percent", 0.0, 1.15)
        charts.append(Chart("points", title, title, [points], *axes))
    sentence = f"Accuracy on {questions} questions, best first."
    return View("Ways to choose visual tokens", [sentence], charts=charts, tables=tables)


def _shares(accuracy: Mapping[str, float], kinds: Sequence[str]) -> list[str]:
    return [percent(accuracy[kind]) for kind in kinds]


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


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that the studies of an artefact share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("artefact", type=Path, help="a bundle or an engine")
    add("--data", type=Path, required=True, help="questions with answers, one JSON object a line")
    add("--limit", type=int, help="only the first N questions")
    add("--max-new-tokens", type=int, default=MAX_NEW_TOKENS, help="of an answer (default: %(default)s)")
    add("--threads", type=int, help="CPU threads")
    add("--checkpoint", help="where the checkpoint is (default: where the artefact says)")
    add("--keep", type=float, nargs="+", default=KEEPS, help="budgets (default: %(default)s)")
    add("-o", "--output", metavar="NAME.json", type=Path, help="the result; its page is beside it")
    return parser


def open_study(args: argparse.Namespace) -> tuple[list[Question], Pipeline, TorchSession]:
    """The questions, the artefact, and its checkpoint in torch."""
    if args.threads:
        limit_threads(args.threads)
    questions = list(islice(read_questions(args.data), args.limit))
    pipeline = Pipeline.open(args.artefact, threads=args.threads)
    model, settings = pipeline.manifest.model, pipeline.manifest.pruning
    source = (model.source, model.revision) if args.checkpoint is None else (args.checkpoint, None)
    session, _, _ = open_live(plan_export(source[0], settings, revision=source[1]), "float32")
    return questions, pipeline, session


def show(found: View, report: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Print a study's view and, where the arguments name a file, write its report and page."""
    print(terminal.render([found]))
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        write_page(args.output.with_suffix(".html"), found.title, args.artefact.name, [found])


def run(execute: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser, given: Sequence[str]) -> int:
    """Run a study; a mistake is one line and exit code 1."""
    args = parser.parse_args(given)
    args.command = shlex.join(given)
    try:
        execute(args)
    except IwpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--layers", type=int, nargs="+", help="pruning layers (default: the artefact's)")
    add("--methods", nargs="+", default=[], help="names of methods (default: all)")
    add("--recipe", metavar="FILE", type=Path, help=f"a recipe, whose settings are compared as `{CALIBRATED}`")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other pruning settings")
    return run(_execute, parser, sys.argv[1:] if arguments is None else arguments)


def _execute(args: argparse.Namespace) -> None:
    questions, pipeline, session = open_study(args)
    settings = changed(pipeline.manifest.pruning, args.set)
    calibrated = read_recipe(args.recipe).settings if args.recipe else None
    layers = args.layers or [settings.layer]
    refused = {layer: refusals(session, replace(settings, layer=layer), args.methods) for layer in layers}
    for layer, reasons in refused.items():
        for name, reason in reasons.items():
            if not args.methods:
                print(f"at layer {layer} {name} is not run: {reason}", file=sys.stderr)
    whole = right_shares(with_method(pipeline, session, Method(settings)), questions, 1.0, args.max_new_tokens)
    rows = []
    for row in compare_methods(
        pipeline, session, questions, settings, args.keep, args.methods, args.max_new_tokens, layers, calibrated
    ):
        rows.append(row)
        print(f"layer {row.layer}  keep {row.keep}  {row.method}: {percent(row.accuracy[ALL])}", file=sys.stderr)
    report = {
        "command": f"python -m calibration.studies.compare {args.command}",
        "changes": args.set,
        **({"calibrated": calibrated.to_dict()} if calibrated else {}),
        "questions": len(questions),
        "random": f"mean of {len(RANDOM_SEEDS)} draws",
        "keep 1": whole,
        "methods": [asdict(row) for row in rows],
        "not run": {str(layer): reasons for layer, reasons in refused.items() if reasons},
        "versions": package_versions(),
    }
    show(view(rows, whole, len(questions)), report, args)


if __name__ == "__main__":
    sys.exit(main())
