"""Compares ways to choose visual tokens: same model, layer, budget and prompts.

python -m calibration.studies.compare tiny-llava.bundle --data questions.jsonl -o methods.json --picture methods.svg
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwp_export.accuracy.figures import ALL
from iwp_export.accuracy.measure import right_shares
from iwp_export.bundle.recipe import read_recipe
from iwp_export.device.state import package_versions
from iwp_export.errors import SettingsError
from iwp_export.pruning.settings import PruningSettings
from iwp_export.questions import MAX_NEW_TOKENS, Question
from iwp_export.reports import entry
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.tables import table
from iwp_export.view.axes import Axis
from iwp_export.view.charts import Bar, bars
from iwp_export.view.draw import check_installed
from iwp_export.view.figures import interval
from iwp_export.view.svg import Svg, write_picture

if TYPE_CHECKING:  # torch takes seconds to load, and may not be there: not for --help or a mistake
    from calibration.studies.rivals.method import Method
    from iwp_export.scorer import Reference

KEEPS = (0.5, 0.353, 0.222, 0.111)
RANDOM_SEEDS = (0, 1, 2)
CALIBRATED = "iwp calibrated"
"""The method with the settings of a recipe."""


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


def compare_methods(
    pipeline: Pipeline,
    reference: Reference,
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
        reference: its checkpoint.
        questions: with answers.
        settings: IWP's.
        keeps: the budgets.
        only: names of methods; empty for all that the model allows.
        max_new_tokens: length of an answer at most.
        layers: where the methods drop tokens; empty for the settings' layer.
        calibrated: settings that were chosen from data, measured at their own layer as `CALIBRATED`.

    Raises:
        SettingsError: a method that does not exist or that the model does not allow, or a layer at which the model
            cannot be pruned.
        DataError: a question without an answer.
    """
    from calibration.studies.rivals import methods
    from calibration.studies.rivals.method import Method

    at_layers = [replace(settings, layer=layer) for layer in layers or (settings.layer,)]
    refused = [refusals(reference, at_layer, only) for at_layer in at_layers]

    def measured(name: str, keep: float, draws: Sequence[Method]) -> MethodAccuracy:
        found = []
        for method in draws:
            pruned = reference.pruned(pipeline, method.settings, method.select, method.condense)
            found.append(right_shares(pruned, questions, keep, max_new_tokens))
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


def refusals(reference: Reference, settings: PruningSettings, only: Sequence[str] = ()) -> dict[str, str]:
    """Methods that cannot be run on this model at this layer, and why.

    Raises:
        SettingsError: one of them is among `only`; and see `compare_methods`.
    """
    from calibration.studies.rivals import methods

    known = methods(settings)
    if unknown := set(only) - set(known):
        raise SettingsError(f"no method {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    reference.family.require_layer(reference.model.config, settings.layer)
    found = {name: reason for name, method in known.items() if (reason := method.refusal(reference.model))}
    for name in found.keys() & set(only):
        raise SettingsError(f"{name} cannot be run here: {found[name]}")
    return found


def ranking(rows: Sequence[MethodAccuracy], whole: Mapping[str, float]) -> str:
    """A table for each budget, the best method first, under the accuracy at keep 1."""
    kinds = list(whole)
    parts = []
    for keep in dict.fromkeys(row.keep for row in rows):
        at_keep = sorted((row for row in rows if row.keep == keep), key=lambda row: -row.accuracy[ALL])
        lines = [[row.method, row.layer, *(_percent(row.accuracy[kind]) for kind in kinds)] for row in at_keep]
        unpruned = ["keep 1", "", *(_percent(whole[kind]) for kind in kinds)]
        parts.append(table([[f"keep {keep:g}", "layer", *kinds], unpruned, *lines]))
    return "\n\n".join(parts)


def picture(rows: Sequence[MethodAccuracy], whole: Mapping[str, float], questions: int) -> list[Svg]:
    """A chart for each budget, the best method first, with 95 % intervals.

    Raises:
        BackendError: matplotlib is missing.
    """
    from calibration.studies.rivals import BEFORE

    charts = []
    for number, keep in enumerate(dict.fromkeys(row.keep for row in rows)):
        at_keep = sorted((row for row in rows if row.keep == keep), key=lambda row: -row.accuracy[ALL])
        series = [Bar("every token", whole[ALL], _percent(whole[ALL]), 0.0, 5, interval(whole[ALL], questions))]
        for row in at_keep:
            name = re.sub(r" \(.*?\)", "", row.method)  # what it leaves out of its paper: the report has it
            name += "" if name.endswith(BEFORE) else f", layer {row.layer}"
            colour = int(row.method in ("iwp", CALIBRATED))
            series.append(Bar(name, row.accuracy[ALL], _percent(row.accuracy[ALL]), 0.0, colour, row.interval))
        axis = Axis(f"right of {questions} answers at keep {keep:g}", "percent", 0.0, 1.15)
        charts.append(
            bars(f"keep-{number}", f"Right answers of each method at keep {keep:g}, with 95 % intervals", series, axis)
        )
    return charts


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


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
    add("--recipe", metavar="FILE", type=Path, help=f"a recipe, whose settings are compared as `{CALIBRATED}`")
    add("--picture", metavar="FILE", type=Path, help="SVG file for a chart of each budget")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other pruning settings")
    return entry.run(parser, _execute, "compare", arguments)


def _execute(args: argparse.Namespace) -> int:
    if args.picture:
        check_installed()
    questions, pipeline = entry.open_questions(args), entry.open_pipeline(args)
    from iwp_export.exporter.loading import limit_threads
    from iwp_export.scorer import Reference

    if args.threads:
        limit_threads(args.threads)
    settings = changed(pipeline.manifest.pruning, args.set)
    calibrated = read_recipe(args.recipe).settings if args.recipe else None
    reference = Reference.of(pipeline.manifest, args.checkpoint)
    whole = right_shares(reference.pruned(pipeline, settings), questions, 1.0, args.max_new_tokens)
    layers = args.layers or [settings.layer]
    refused = {layer: refusals(reference, replace(settings, layer=layer), args.methods) for layer in layers}
    for layer, reasons in refused.items():
        for name, reason in reasons.items():
            if not args.methods:
                print(f"at layer {layer} {name} is not run: {reason}", file=sys.stderr)
    rows = []
    for row in compare_methods(
        pipeline, reference, questions, settings, args.keep, args.methods, args.max_new_tokens, layers, calibrated
    ):
        rows.append(row)
        print(f"layer {row.layer}  keep {row.keep}  {row.method}: {_percent(row.accuracy[ALL])}", file=sys.stderr)
    print(f"accuracy on {len(questions)} questions, best first\n\n{ranking(rows, whole)}")
    report = {
        "command": args.command,
        "changes": args.set,
        **({"calibrated": calibrated.to_dict()} if calibrated else {}),
        "questions": len(questions),
        "random": f"mean of {len(RANDOM_SEEDS)} draws",
        "keep 1": whole,
        "methods": [asdict(row) for row in rows],
        "not run": {str(layer): reasons for layer, reasons in refused.items() if reasons},
        "versions": package_versions(),
    }
    entry.write_report(report, args.output)
    if args.picture:
        write_picture(args.picture, picture(rows, whole, len(questions)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
