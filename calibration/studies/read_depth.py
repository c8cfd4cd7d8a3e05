"""What is left of a model's answers by the layer from which on it sees no visual token, and by budget.

python -m calibration.studies.read_depth tiny-llava.bundle --data questions.jsonl -o read_depth.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from calibration.studies.compare import make_parser, open_study, run, show
from iwp_export.backends.torch.session import TorchSession
from iwp_export.device.machine import package_versions
from iwp_export.pruning.settings import PruningSettings
from iwp_export.questions import MAX_NEW_TOKENS, Question
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.scorer import Score, Scorer
from iwp_export.view.figures import interval, percent
from iwp_export.view.view import Axis, Chart, Column, Series, Table, View

CLIFF = 0.95
"""Pruning has a cost from the first budget whose score is below this share of the unpruned one."""


@dataclass(frozen=True)
class Left:
    """What is left of the answers at a place: a layer that ends the image, or a keep ratio.

    Attributes:
        place: the layer, or the ratio.
        kl: divergence of the next token's distribution from the unpruned model's, mean nats.
        agreement: share of answers that are the unpruned model's.
        score: share of right answers; without answers in the data, the agreement.
    """

    place: float
    kl: float
    agreement: float
    score: float


def measure(
    pipeline: Pipeline,
    session: TorchSession,
    questions: Sequence[Question],
    keeps: Sequence[float],
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> tuple[list[Left], list[Left]]:
    """By layer, a last one with every token; and by keep ratio from 1 downward, at the artefact's pruning layer.

    Raises:
        RequestError: a question cannot be asked.
    """
    layers, settings = pipeline.manifest.decoder.layers, pipeline.manifest.pruning
    scorer = Scorer(session, pipeline.manifest, pipeline.processor, range(layers), max_new_tokens)
    prunable = session.family.prunable_layers(session.model.config)
    pruned = [replace(settings, keep=keep) for keep in sorted({*keeps, settings.keep} - {1.0}, reverse=True)]
    depth: dict[float, list[Score]] = {layer: [] for layer in (*prunable, layers)}
    budget: dict[float, list[Score]] = {keep: [] for keep in (1.0, *(each.keep for each in pruned))}
    for question in questions:
        prepared = scorer.prepare(question)
        for layer in prunable:
            depth[layer].append(scorer.score(prepared, replace(settings, layer=layer), True, blind=True))
        for each in pruned:
            budget[each.keep].append(scorer.score(prepared, each, with_answer=True))
        for whole in (depth[layers], budget[1.0]):
            whole.append(Score(0.0, True, prepared.right))
    return [_left(*found) for found in depth.items()], [_left(*found) for found in budget.items()]


def _left(place: float, scores: Sequence[Score]) -> Left:
    agrees = float(np.mean([score.agrees for score in scores]))
    rights = [score.right for score in scores if score.right is not None]
    score = float(np.mean(rights)) if len(rights) == len(scores) else agrees
    return Left(place, float(np.mean([each.kl for each in scores])), agrees, score)


def knee(budget: Sequence[Left]) -> Left:
    """The smallest budget at which, and above which, the score is `CLIFF` of the unpruned one at least."""
    found = budget[0]
    for point in budget:
        if point.score < CLIFF * budget[0].score:
            break
        found = point
    return found


def view(depth: Sequence[Left], budget: Sequence[Left], settings: PruningSettings, questions: int) -> View:
    """Both curves with 95 % intervals, their tables, and the knee."""
    bend = knee(budget)
    sentence = (
        f"The knee is at keep {bend.place:g}: {percent(bend.score)} of {questions} answers, {percent(budget[0].score)} "
        f"with every token, pruned at layer {settings.layer}."
    )
    axes = Axis("no visual token from layer", "whole"), Axis("visual tokens kept", "percent", low=0.0)
    titles = ("Where the model reads the image", "The score by budget")
    charts = [
        Chart("lines", title, title, [_line(points, questions)], axis, Axis("score", "percent", low=0.0))
        for title, points, axis in zip(titles, (depth, budget), axes, strict=True)
    ]
    columns = [Column(title, number=True) for title in ("score", "agreement", "KL, nats")]
    tables = [
        Table(
            (name, *columns),
            [(f"{each.place:g}", percent(each.score), percent(each.agreement), f"{each.kl:.3g}") for each in points],
            title,
        )
        for name, points, title in zip(("layer", "keep"), (depth, budget), titles, strict=True)
    ]
    return View("Read depth and budget", [sentence], charts=charts, tables=tables)


def _line(points: Sequence[Left], questions: int) -> Series:
    low, high = zip(*(interval(point.score, questions) for point in points), strict=True)
    return Series("score", tuple(point.place for point in points), tuple(point.score for point in points), low, high)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    return run(_execute, make_parser(__doc__), sys.argv[1:] if arguments is None else arguments)


def _execute(args: argparse.Namespace) -> None:
    questions, pipeline, session = open_study(args)
    depth, budget = measure(pipeline, session, questions, args.keep, args.max_new_tokens)
    report = {
        "command": f"python -m calibration.studies.read_depth {args.command}",
        "questions": len(questions),
        "depth": [asdict(point) for point in depth],
        "budget": [asdict(point) for point in budget],
        "versions": package_versions(),
    }
    show(view(depth, budget, pipeline.manifest.pruning, len(questions)), report, args)


if __name__ == "__main__":
    sys.exit(main())
