"""Asks an artefact questions at several keep ratios and scores its answers. Needs no torch."""

from __future__ import annotations

import base64
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from iwp_export.accuracy.figures import ALL, Accuracy, Answered, AtKeep, KeptView, Kind
from iwp_export.accuracy.scoring import check_answers, compare, find_score, share
from iwp_export.bundle.schema import CONTROL
from iwp_export.progress import progress
from iwp_export.pruning.settings import check_keep
from iwp_export.questions import MAX_NEW_TOKENS, DataSet, Question, digest_of
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.result import Result
from iwp_export.view.figures import Interval

EXAMPLES = 4
SIDE = 240
"""Pixels of the longer side of a stored view; several views of an example share the area of one."""
JPEG_QUALITY = 80
TEXT_LENGTH = 400
"""Characters of a stored prompt or answer."""


@dataclass(frozen=True)
class Answers:
    """Answers to questions, in order, at one keep ratio.

    Attributes:
        texts: the answers.
        visual_tokens, visual_tokens_kept: means of a question.
        cut: share that the limit of tokens cut off.
    """

    texts: tuple[str, ...]
    visual_tokens: float
    visual_tokens_kept: float
    cut: float


def ask(
    pipeline: Pipeline, questions: Sequence[Question], keep: float, max_new_tokens: int = MAX_NEW_TOKENS
) -> Answers:
    """Ask the questions, each as a conversation of its own, through the chat template, and decode greedily.

    Raises:
        RequestError: a question cannot be asked.
    """
    texts: list[str] = []
    total = kept = cut = 0
    with progress(f"Answering at keep {keep:.2f}", len(questions)) as advance:
        for question in questions:
            result = pipeline(list(question.images), question.prompt, max_new_tokens=max_new_tokens, keep=keep)
            texts.append(result.text)
            total += result.visual_tokens
            kept += result.visual_tokens_kept
            cut += result.finish_reason != "stop"
            advance(1)
    count = len(questions)
    return Answers(tuple(texts), total / count, kept / count, cut / count)


def measure_accuracy(
    pipeline: Pipeline,
    data: DataSet,
    keeps: Sequence[float] = (),
    score: str = "exact",
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Accuracy:
    """Score the answers at several keep ratios and compare them with those at keep 1, which is always measured.

    Without answers in the data, the figures are of agreement with the unpruned model alone.

    Args:
        pipeline: the artefact.
        data: questions of which all have answers or none has.
        keeps: ratios; the artefact's own if none is given.
        score: a name of `scoring.SCORES`.
        max_new_tokens: length of an answer at most.

    Raises:
        DataError, SettingsError: see `check_answers`, `find_score`, `check_keep`.
        RequestError: a question cannot be asked.
    """
    is_right, manifest, questions = find_score(score), pipeline.manifest, data.questions
    for keep in keeps:
        check_keep(keep)
    answered = check_answers(questions)
    ratios = sorted({1.0, *(keeps or (manifest.pruning.keep,))}, reverse=True)
    answers = {keep: ask(pipeline, questions, keep, max_new_tokens) for keep in ratios}
    scores: dict[float, tuple[float, ...]] = dict.fromkeys(ratios, ())
    if answered:
        scores = {
            keep: tuple(float(is_right(text, each.answers)) for text, each in zip(found.texts, questions, strict=True))
            for keep, found in answers.items()
        }
    kinds = _kinds(questions)
    made = Accuracy(
        data=one_line(data.name),
        digest=digest_of(questions),
        questions=len(questions),
        score=score if answered else "",
        max_new_tokens=max_new_tokens,
        own_keep=manifest.pruning.keep,
        calibrated=data.is_of(manifest.pruning_source.data),
        visual_tokens=answers[1.0].visual_tokens,
        at=tuple(_at(keep, answers, scores, kinds) for keep in ratios),
    )
    return replace(made, examples=_examples(made, pipeline, questions, answers[1.0].texts))


def _at(
    keep: float,
    answers: Mapping[float, Answers],
    scores: Mapping[float, Sequence[float]],
    kinds: Mapping[str, Sequence[int]],
) -> AtKeep:
    here, marks = answers[keep], tuple(scores[keep])
    same = tuple(one == other for one, other in zip(here.texts, answers[1.0].texts, strict=True))
    return AtKeep(
        keep=keep,
        visual_tokens_kept=here.visual_tokens_kept,
        cut=here.cut,
        relative=compare(scores[1.0], marks)[1] if marks and keep < 1 else None,
        kinds=tuple(
            Kind(
                name,
                len(chosen),
                share([marks[i] for i in chosen]) if marks else None,
                share([same[i] for i in chosen]) if keep < 1 else Interval(1.0, 1.0, 1.0),
            )
            for name, chosen in kinds.items()
        ),
        scores=marks,
        same=same,
    )


def _kinds(questions: Sequence[Question]) -> dict[str, list[int]]:
    """Numbers of the questions of each kind, in the order in which the kinds come, and of all."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        if question.kind is not None:
            found[one_line(question.kind)].append(number)
    found.pop(ALL, None)
    return {**found, ALL: list(range(len(questions)))}


def shares(questions: Sequence[Question], right: Sequence[bool]) -> dict[str, float]:
    """Share of right answers by kind of question, in the order in which the kinds come, and of all."""
    return {kind: round(sum(right[i] for i in chosen) / len(chosen), 4) for kind, chosen in _kinds(questions).items()}


def _examples(
    accuracy: Accuracy, pipeline: Pipeline, questions: Sequence[Question], unpruned: Sequence[str]
) -> tuple[Answered, ...]:
    """Ask a few questions again at the first of the ratios that ship: the most lost, other changes, then the rest."""
    found, before = accuracy.shipped[0], accuracy.unpruned.scores
    lost = [after - one < 0 for one, after in zip(before, found.scores, strict=True)] or [False] * len(questions)
    made: list[Answered] = []
    shown: set[tuple[Path, ...]] = set()
    for number in sorted(range(len(questions)), key=lambda number: (not lost[number], found.same[number])):
        question = questions[number]
        if found.same[number] and question.images in shown:  # the same picture again shows nothing new
            continue
        shown.add(question.images)
        result = pipeline(
            list(question.images), question.prompt, max_new_tokens=accuracy.max_new_tokens, keep=found.keep
        )
        made.append(
            Answered(
                number=number + 1,
                images=tuple(one_line(image.name) for image in question.images),
                prompt=one_line(question.prompt),
                right=tuple(dict.fromkeys(map(one_line, question.answers))),
                unpruned=one_line(unpruned[number]),
                pruned=one_line(result.text),
                keep=found.keep,
                views=_views(result),
            )
        )
        if len(made) == EXAMPLES:
            break
    return tuple(made)


def _views(result: Result) -> tuple[KeptView, ...]:
    """The views of an answer's images, reduced, with the cells that stayed."""
    side = max(1, round(SIDE / math.sqrt(max(sum(len(picture.views) for picture in result.pictures), 1))))
    made = []
    for picture, kept in zip(result.pictures, result.kept, strict=True):
        for view in picture.views:
            image, buffer = Image.fromarray(view.seen), BytesIO()
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            image.save(buffer, "JPEG", quality=JPEG_QUALITY)
            cells = np.flatnonzero(np.isin(view.tokens, kept))
            jpeg = base64.b64encode(buffer.getvalue()).decode("ascii")
            rows, columns = view.tokens.shape
            made.append(KeptView(jpeg, rows, columns, tuple(cells.tolist())))
    return tuple(made)


def one_line(text: str) -> str:
    """A text without line ends and control characters, which a report cannot hold, and not longer than it shows."""
    plain = CONTROL.sub(" ", text)
    return plain if len(plain) <= TEXT_LENGTH else f"{plain[: TEXT_LENGTH - 1]}…"
