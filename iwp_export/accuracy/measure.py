"""Asks an artefact questions at several keep ratios and scores its answers. Needs no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from iwp_export.accuracy import comparison
from iwp_export.accuracy.examples import choose_examples, one_line
from iwp_export.accuracy.figures import ALL, Accuracy, AtKeep, Kind
from iwp_export.accuracy.scoring import Rule, find_rule, is_yes
from iwp_export.errors import DataError
from iwp_export.progress import progress
from iwp_export.pruning.settings import check_keep
from iwp_export.questions import MAX_NEW_TOKENS, Question, digest_of
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.view.figures import Interval


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
    questions: Sequence[Question],
    keeps: Sequence[float] = (),
    rule: str = "exact",
    max_new_tokens: int = MAX_NEW_TOKENS,
    data: str = "the data",
) -> Accuracy:
    """Score the answers at several keep ratios and compare them with those at keep 1, which is always measured.

    Without answers in the data, the figures are of agreement with the unpruned model alone.

    Args:
        pipeline: the artefact.
        questions: of which all have answers or none has.
        keeps: ratios; the artefact's own if none is given.
        rule: a name of `scoring.RULES`.
        max_new_tokens: length of an answer at most.
        data: name of the questions, for words.

    Raises:
        DataError, SettingsError: see `scoring.Rule.check`, `find_rule`, `check_keep`.
        RequestError: a question cannot be asked.
    """
    scoring = find_rule(rule)
    own = pipeline.manifest.pruning.keep
    for keep in keeps:
        check_keep(keep)
    scored = scoring.check(questions)
    ratios = sorted({1.0, *(keeps or (own,))}, reverse=True)
    answers = {keep: ask(pipeline, questions, keep, max_new_tokens) for keep in ratios}
    yes = tuple(is_yes(question.accepted) for question in questions) if scored and scoring.f1 else ()
    marked = {keep: _marked(answers[keep], questions, scoring if scored else None) for keep in ratios}
    kinds = _kinds(questions)
    made = Accuracy(
        data=one_line(data),
        digest=digest_of(questions),
        questions=len(questions),
        rule=rule if scored else "",
        title=scoring.title if scored else "agreement",
        max_new_tokens=max_new_tokens,
        own_keep=own,
        visual_tokens=answers[1.0].visual_tokens,
        yes=yes,
        at=tuple(_figures(keep, marked[keep], marked[1.0], yes, kinds) for keep in ratios),
    )
    return replace(made, examples=choose_examples(made, pipeline, questions, answers[1.0].texts))


@dataclass(frozen=True)
class _Marked:
    """Answers with the score of each; no scores where the data has no answers."""

    answers: Answers
    scores: tuple[float, ...]


def _marked(answers: Answers, questions: Sequence[Question], rule: Rule | None) -> _Marked:
    if rule is None:
        return _Marked(answers, ())
    pairs = zip(answers.texts, questions, strict=True)
    return _Marked(answers, tuple(round(rule.score(text, question.accepted), 4) for text, question in pairs))


def _figures(
    keep: float, here: _Marked, whole: _Marked, yes: Sequence[bool], kinds: Mapping[str, Sequence[int]]
) -> AtKeep:
    same = tuple(one == other for one, other in zip(here.answers.texts, whole.answers.texts, strict=True))
    change = relative = None
    if here.scores and keep < 1:
        change, relative = comparison.compare(whole.scores, here.scores, yes)
    by_kind = tuple(
        Kind(
            name,
            len(chosen),
            _score(here.scores, yes, chosen),
            comparison.share([same[i] for i in chosen]) if keep < 1 else Interval(1.0, 1.0, 1.0),
        )
        for name, chosen in kinds.items()
    )
    return AtKeep(
        keep=keep,
        visual_tokens_kept=here.answers.visual_tokens_kept,
        cut=here.answers.cut,
        score=by_kind[-1].score,
        change=change,
        relative=relative,
        agreement=by_kind[-1].agreement,
        kinds=by_kind,
        more=comparison.yes_no_figures(here.scores, yes) if yes else {},
        scores=here.scores,
        same=same,
    )


def _score(scores: Sequence[float], yes: Sequence[bool], chosen: Sequence[int]) -> Interval | None:
    if not scores:
        return None
    return comparison.score([scores[i] for i in chosen], [yes[i] for i in chosen] if yes else ())


def _kinds(questions: Sequence[Question]) -> dict[str, list[int]]:
    """Numbers of the questions of each kind, in the order in which the kinds come, and of all."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        if question.kind is not None:
            found[one_line(question.kind)].append(number)
    found.pop(ALL, None)
    return {**found, ALL: list(range(len(questions)))}


def right_shares(
    pipeline: Pipeline, questions: Sequence[Question], keep: float, max_new_tokens: int = MAX_NEW_TOKENS
) -> dict[str, float]:
    """Share of answers that are right to the letter at one keep ratio, by kind of question and of all.

    Raises:
        DataError: a question has no answer to compare with.
        RequestError: a question cannot be asked.
    """
    rule = find_rule("exact")
    if not rule.check(questions):
        raise DataError(f"accuracy needs questions with an `answer`: none of {len(questions)} has one")
    answers = ask(pipeline, questions, keep, max_new_tokens)
    return shares(questions, [bool(score) for score in _marked(answers, questions, rule).scores])


def shares(questions: Sequence[Question], right: Sequence[bool]) -> dict[str, float]:
    """Share of right answers by kind of question, in the order in which the kinds come, and of all."""
    return {kind: round(sum(right[i] for i in chosen) / len(chosen), 4) for kind, chosen in _kinds(questions).items()}
