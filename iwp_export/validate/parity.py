"""Shows that an artefact equals its checkpoint.

    python -m iwp_export.validate.parity tiny-llava.bundle --data questions.jsonl -o parity.json

At keep 1 the artefact's answers are compared with transformers' `generate`, token for token, and its logits with the
model's. At smaller budgets its kept tokens, answers and logits are compared with the torch reference's. Exits with 1
if something differs by more than rounding; the limits are for float32.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from iwp_export.backends.session import Floats, Ints
from iwp_export.backends.torch.seen import Seen
from iwp_export.models.common.picture import Picture
from iwp_export.progress import progress
from iwp_export.pruning.reference import selection_gap
from iwp_export.pruning.torch_select import Select
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.processor import user_message
from iwp_export.runtime.result import Result
from iwp_export.validate import entry
from iwp_export.validate.questions import MAX_NEW_TOKENS, Question
from iwp_export.validate.reference import Reference
from iwp_export.validate.rivals.method import Method

KEEPS = (0.5, 0.353, 0.222, 0.111)
LOGITS_TOLERANCE = 1e-3
TIE = 1e-4
"""Priorities lie in [0, 1]; two that differ by less than this are one within float32 rounding of their sums."""


@dataclass(frozen=True)
class Difference:
    """How far an artefact is from what it is compared with, at one keep ratio.

    Attributes:
        keep: the ratio.
        questions: how many were compared.
        choices_that_differ: questions for which other visual tokens were kept.
        answers_that_differ: questions whose generated tokens differ.
        max_logits_difference: over the tokens up to the first that differs, where the choices are equal.
        max_priority_gap_of_differing_choices: the most by which a token that the artefact left out beats one that it
            took; of the order of float32 rounding in a tie.
    """

    keep: float
    questions: int
    choices_that_differ: int
    answers_that_differ: int
    max_logits_difference: float
    max_priority_gap_of_differing_choices: float

    def failures(self) -> list[str]:
        """What is more than rounding, a line each."""
        found = []
        if self.answers_that_differ:
            found.append(f"{self.answers_that_differ} of {self.questions} answers differ")
        if not self.max_logits_difference <= LOGITS_TOLERANCE:  # NaN fails too
            found.append(f"logits differ by {self.max_logits_difference:.1e}, more than {LOGITS_TOLERANCE}")
        if not self.max_priority_gap_of_differing_choices <= TIE:
            found.append("a choice differs that is no tie")
        return [f"keep {self.keep:g}: {line}" for line in found]


def compare_with_generate(
    pipeline: Pipeline, reference: Reference, questions: Sequence[Question], max_new_tokens: int = MAX_NEW_TOKENS
) -> Difference:
    """At keep 1: greedy tokens of transformers' `generate`, and its logits."""
    different, gaps = 0, [0.0]
    with progress("Comparing with transformers", len(questions)) as advance:
        for question in questions:
            token_ids, pictures = encode(pipeline, question)
            ours = _answer(pipeline, token_ids, pictures, 1.0, max_new_tokens)
            tokens, logits = reference.generate(token_ids, question.images, max_new_tokens)
            different += tokens != ours.token_ids
            gaps.append(_logits_difference(ours, tokens, logits))
            advance(1)
    return Difference(1.0, len(questions), 0, different, float(np.max(gaps)), 0.0)


def compare_with_reference(
    pipeline: Pipeline,
    reference: Reference,
    questions: Sequence[Question],
    keep: float,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Difference:
    """At one budget: kept tokens, greedy tokens and logits of the torch reference."""
    choices, answers, gaps, ties = 0, 0, [0.0], [0.0]
    method = RecordedMethod(Method(pipeline.manifest.pruning))
    pruned = reference.pruned(pipeline, method.method.settings, method.select)
    with progress(f"Comparing with the reference at keep {keep:g}", len(questions)) as advance:
        for question in questions:
            token_ids, pictures = encode(pipeline, question)
            ours, theirs = (_answer(each, token_ids, pictures, keep, max_new_tokens) for each in (pipeline, pruned))
            answers += ours.token_ids != theirs.token_ids
            if ours.kept != theirs.kept:
                choices += 1
                ties.append(method.gap(_pooled(ours)))
            else:
                gaps.append(_logits_difference(ours, theirs.token_ids, theirs.logits or []))
            advance(1)
    return Difference(keep, len(questions), choices, answers, float(np.max(gaps)), float(np.max(ties)))


def encode(pipeline: Pipeline, question: Question) -> tuple[Ints, list[Picture]]:
    """Token ids [S] and pictures of a question, by the artefact's own processor."""
    pictures = [pipeline.processor.image(image) for image in question.images]
    text = pipeline.processor.render([user_message(question.prompt, len(pictures))])
    return pipeline.processor.token_ids(text, pictures), pictures


class RecordedMethod:
    """A method of the IWP kind that remembers what its last choice of visual tokens was made from."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self._inputs: tuple[torch.Tensor, ...] = ()

    def select(self, seen: Seen) -> Select:
        """The pruning op for one call; see `Method.select`."""
        run = self.method.select(seen)

        def record(*inputs: torch.Tensor) -> torch.Tensor:
            if inputs[3].any():  # is_visual: a decode step has no choice to make
                self._inputs = inputs
            return run(*inputs)

        return record

    def gap(self, chosen: npt.ArrayLike) -> float:
        """`selection_gap` of the visual tokens that someone else chose from the same inputs."""
        importance, key, value, is_visual = (tensor[0] for tensor in self._inputs[:4])
        arrays = (importance[is_visual], key[:, is_visual], value[:, is_visual])
        return selection_gap(chosen, *(array.float().numpy() for array in arrays), **self.method.settings.selection())


def _answer(
    pipeline: Pipeline, token_ids: Ints, pictures: Sequence[Picture], keep: float, max_new_tokens: int
) -> Result:
    return pipeline.generate_ids(token_ids, pictures, max_new_tokens=max_new_tokens, keep=keep, return_logits=True)


def _logits_difference(ours: Result, tokens: Sequence[int], logits: Sequence[Floats]) -> float:
    """The largest, NaN if there is one, up to the first token that differs: beyond it the prompts are not the same."""
    largest = [0.0]
    for mine, token, a, b in zip(ours.token_ids, tokens, ours.logits or [], logits, strict=False):
        largest.append(float(np.abs(a - b).max()))
        if mine != token:
            break
    return float(np.max(largest))


def _pooled(result: Result) -> list[int]:
    """The kept visual tokens of all the call's pictures, which compete in one pool, counted from the first one's."""
    starts = np.cumsum([0, *(picture.num_tokens for picture in result.pictures)]).tolist()
    return [start + index for start, kept in zip(starts, result.kept, strict=False) for index in kept]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = entry.make_parser(__doc__)
    parser.add_argument("--checkpoint", help="where the checkpoint is (default: where the artefact says)")
    parser.add_argument("--keep", type=float, nargs="+", default=KEEPS, help="budgets beside 1 (default: %(default)s)")
    return entry.run(parser, _execute, "parity", arguments)


def _execute(args: argparse.Namespace) -> int:
    questions, pipeline = entry.open_questions(args), entry.open_pipeline(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    manifest = pipeline.manifest
    reference = Reference.of(manifest, args.checkpoint, manifest.decoder.dtype)
    whole = compare_with_generate(pipeline, reference, questions, args.max_new_tokens)
    pruned = [compare_with_reference(pipeline, reference, questions, keep, args.max_new_tokens) for keep in args.keep]
    report: dict[str, Any] = {
        "command": args.command,
        "provider": pipeline.provider,
        "dtype": manifest.decoder.dtype,
        "pruning": manifest.pruning.to_dict(),
        "keep 1 against transformers' generate": asdict(whole),
        "against the torch reference": [asdict(difference) for difference in pruned],
        "versions": entry.versions(),
    }
    print(json.dumps(report, indent=2))
    entry.write_report(report, args.output)
    failures = [line for difference in (whole, *pruned) for line in difference.failures()]
    for line in failures:
        print(f"FAILED {line}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
