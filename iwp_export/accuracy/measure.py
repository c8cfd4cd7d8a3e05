"""Asks an artefact questions at several keep ratios and scores its answers. Needs no torch."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from statistics import fmean as mean

from iwp_export.accuracy.figures import ALL, Accuracy, Answered, AtKeep, Kind, Original
from iwp_export.accuracy.scoring import SCORES, check_answers, compare
from iwp_export.errors import SettingsError
from iwp_export.progress import progress
from iwp_export.questions import MAX_NEW_TOKENS, DataSet, Question, digest_of
from iwp_export.runtime.drawing import draw_kept
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.result import Result
from iwp_export.settings import ValidationSettings
from iwp_export.view.figures import Interval, share_of
from iwp_export.view.view import one_line

EXAMPLES = 4
SIDE = 480
"""Pixels of the longer side of an example's picture; several pictures share it."""
JPEG_QUALITY = 80
ORIGINAL_QUESTIONS = ValidationSettings.parity_samples
"""That the checkpoint itself is asked."""
TEXT_LENGTH = 400
"""Characters of a stored prompt or answer."""


def measure_accuracy(
    pipeline: Pipeline,
    data: DataSet,
    keeps: Sequence[float] = (),
    score: str = "exact",
    max_new_tokens: int = MAX_NEW_TOKENS,
    original: Callable[[Question, int], str | None] | None = None,
    original_questions: int = ORIGINAL_QUESTIONS,
) -> Accuracy:
    """Score the answers at several keep ratios and compare them with those at keep 1, which is always measured.

    Without answers in the data, the figures are of agreement with the unpruned model alone.

    Args:
        pipeline: the artefact.
        data: questions of which all have answers or none has.
        keeps: ratios; the artefact's own if none is given.
        score: a name of `scoring.SCORES`.
        max_new_tokens: length of an answer at most.
        original: the checkpoint's own answer to a question, of so many tokens at most; None where it has none.
        original_questions: how many it is asked.

    Raises:
        SettingsError: there is no such score.
        DataError: see `check_answers`.
        RequestError: a question cannot be asked.
    """
    if score not in SCORES:
        raise SettingsError(f"score must be one of {', '.join(SCORES)}, got {score!r}", options=("score",))
    manifest, questions = pipeline.manifest, data.questions
    answered, kinds = check_answers(questions), _kinds(questions)
    at: list[AtKeep] = []
    unpruned: list[str] = []
    for keep in sorted({1.0, *(keeps or (manifest.pruning.keep,))}, reverse=True):
        results = []
        with progress(f"Answering at keep {keep:.2f}", len(questions)) as advance:
            for question in questions:
                result = _ask(pipeline, question, keep, max_new_tokens)
                results.append(replace(result, pictures=()))  # thousands of images are too many for memory
                advance(1)
        texts = [result.text for result in results]
        if keep == 1:
            unpruned, visual = texts, mean([result.visual_tokens for result in results])
        scores = _scores(score, texts, questions) if answered else ()
        same = tuple(one == other for one, other in zip(texts, unpruned, strict=True))
        at.append(
            AtKeep(
                keep=keep,
                visual_tokens_kept=mean([result.visual_tokens_kept for result in results]),
                cut=mean([result.finish_reason != "stop" for result in results]),
                relative=compare(at[0].scores, scores)[1] if answered and at else None,
                kinds=tuple(_kind(name, chosen, scores, same, keep) for name, chosen in kinds.items()),
                scores=scores,
                same=same,
            )
        )
    made = Accuracy(
        data=one_line(data.name, TEXT_LENGTH),
        digest=digest_of(questions),
        questions=len(questions),
        score=score if answered else "",
        max_new_tokens=max_new_tokens,
        own_keep=manifest.pruning.keep,
        calibrated=data.is_of(manifest.pruning_source.data),
        visual_tokens=visual,
        at=tuple(at),
    )
    if original is not None:
        made = replace(made, original=_original(made, questions[:original_questions], unpruned, original))
    return replace(made, examples=_examples(made, pipeline, questions, unpruned))


def _original(
    accuracy: Accuracy,
    questions: Sequence[Question],
    unpruned: Sequence[str],
    answer: Callable[[Question, int], str | None],
) -> Original | None:
    """The artefact's unpruned answers to the first questions beside the checkpoint's; None where it gives none."""
    texts: list[str] = []
    with progress("Asking the checkpoint", len(questions)) as advance:
        for question in questions:
            if (text := answer(question, accuracy.max_new_tokens)) is None:
                return None
            texts.append(text)
            advance(1)
    same = tuple(one == other for one, other in zip(texts, unpruned, strict=False))
    if not accuracy.score:
        return Original(same, (), None)
    scores = _scores(accuracy.score, texts, questions)
    return Original(same, scores, compare(scores, accuracy.unpruned.scores[: len(scores)])[1])


def _scores(score: str, texts: Sequence[str], questions: Sequence[Question]) -> tuple[float, ...]:
    return tuple(float(SCORES[score](text, each.answers)) for text, each in zip(texts, questions, strict=True))


def _ask(pipeline: Pipeline, question: Question, keep: float, max_new_tokens: int) -> Result:
    """A question as a conversation of its own, through the chat template, decoded greedily."""
    return pipeline(list(question.images), question.prompt, max_new_tokens=max_new_tokens, keep=keep)


def _kind(name: str, chosen: Sequence[int], scores: Sequence[float], same: Sequence[bool], keep: float) -> Kind:
    """Figures of some questions; at keep 1 an answer is compared with itself."""
    agreement = share_of([same[i] for i in chosen]) if keep < 1 else Interval(1.0, 1.0, 1.0)
    return Kind(name, len(chosen), share_of([scores[i] for i in chosen]) if scores else None, agreement)


def _kinds(questions: Sequence[Question]) -> dict[str, list[int]]:
    """Numbers of the questions of each kind, in the order in which the kinds come, and of all."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        if question.kind is not None:
            found[one_line(question.kind, TEXT_LENGTH)].append(number)
    found.pop(ALL, None)
    return {**found, ALL: list(range(len(questions)))}


def _examples(
    accuracy: Accuracy, pipeline: Pipeline, questions: Sequence[Question], unpruned: Sequence[str]
) -> tuple[Answered, ...]:
    """Ask a few questions again at the first of the ratios that ship: the most lost, other changes, then the rest."""
    found, before = accuracy.shipped[0], accuracy.unpruned.scores
    lost = [after < one for one, after in zip(before, found.scores, strict=True)] or [False] * len(questions)
    made = []
    for number in sorted(range(len(questions)), key=lambda number: (not lost[number], found.same[number]))[:EXAMPLES]:
        question = questions[number]
        result = _ask(pipeline, question, found.keep, accuracy.max_new_tokens)
        made.append(
            Answered(
                number=number + 1,
                images=tuple(one_line(image.name, TEXT_LENGTH) for image in question.images),
                prompt=one_line(question.prompt, TEXT_LENGTH),
                right=tuple(dict.fromkeys(one_line(each, TEXT_LENGTH) for each in question.answers)),
                unpruned=one_line(unpruned[number], TEXT_LENGTH),
                pruned=one_line(result.text, TEXT_LENGTH),
                keep=found.keep,
                pictures=_drawn(result),
            )
        )
    return tuple(made)


def _drawn(result: Result) -> tuple[str, ...]:
    """JPEG files in base64 of an answer's images, dropped tokens dimmed."""
    made, side = [], max(1, SIDE // max(len(result.pictures), 1))
    for picture, kept in zip(result.pictures, result.kept, strict=True):
        image, buffer = draw_kept(picture, kept, side), BytesIO()
        image.thumbnail((side, side))
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
        made.append(base64.b64encode(buffer.getvalue()).decode("ascii"))
    return tuple(made)
