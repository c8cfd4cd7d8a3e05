"""How many questions an artefact, or each of several, answers rightly at each keep ratio. Needs no torch.

python -m iwp_export.validate.accuracy tiny-llava.bundle --data questions.jsonl --keep 1 0.3
python -m iwp_export.validate.accuracy mine.bundle paper.bundle random.bundle --data questions.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iwp_export.errors import DataError
from iwp_export.progress import progress
from iwp_export.pruning.settings import check_keep
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.tables import table
from iwp_export.validate import entry
from iwp_export.validate.questions import MAX_NEW_TOKENS, Question

KEEPS = (1.0, 0.3, 0.11)
ALL = "all"


@dataclass(frozen=True)
class Accuracy:
    """Right answers at one keep ratio.

    Attributes:
        keep: the ratio.
        questions: how many were asked.
        visual_tokens_kept: mean over the questions.
        shares: share of right answers, by kind of question and of all.
    """

    keep: float
    questions: int
    visual_tokens_kept: float
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Artefact:
    """What was measured of one artefact, by keep ratio."""

    path: Path
    provider: str
    dtype: str
    accuracy: Sequence[Accuracy]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "artefact": str(self.path),
            "provider": self.provider,
            "dtype": self.dtype,
            "accuracy": [asdict(found) for found in self.accuracy],
        }


def measure_accuracy(
    pipeline: Pipeline, questions: Sequence[Question], keep: float, max_new_tokens: int = MAX_NEW_TOKENS
) -> Accuracy:
    """Ask the questions, each as a conversation of its own; an answer is right if it is the data's to the letter.

    Raises:
        DataError: a question has no answer to compare with.
        RequestError: a question cannot be asked.
    """
    _check_answers(questions)
    right, kept = [], 0
    with progress(f"Answering at keep {keep:.2f}", len(questions)) as advance:
        for question in questions:
            result = pipeline(list(question.images), question.prompt, max_new_tokens=max_new_tokens, keep=keep)
            right.append(result.text == question.answer)
            kept += result.visual_tokens_kept
            advance(1)
    return Accuracy(keep, len(questions), kept / len(questions), shares(questions, right))


def shares(questions: Sequence[Question], right: Sequence[bool]) -> dict[str, float]:
    """Share of right answers by kind of question, in the order in which the kinds come, and of all."""
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for question, is_right in zip(questions, right, strict=True):
        if question.kind is not None:
            by_kind[question.kind].append(is_right)
    by_kind[ALL] = list(right)
    return {kind: round(sum(values) / len(values), 4) for kind, values in by_kind.items()}


def _check_answers(questions: Sequence[Question]) -> None:
    missing = sum(question.answer is None for question in questions)
    if missing or not questions:
        raise DataError(f"accuracy needs questions with an `answer`: {missing} of {len(questions)} have none")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = entry.make_parser(__doc__, several=True)
    parser.add_argument("--keep", type=float, nargs="+", default=KEEPS, help="keep ratios (default: 1.0 0.3 0.11)")
    return entry.run(parser, _execute, "accuracy", arguments)


def _execute(args: argparse.Namespace) -> int:
    questions = entry.open_questions(args)
    _check_answers(questions)
    for keep in args.keep:
        check_keep(keep)
    entry.check_artefacts(args.artefacts)
    found = []
    for artefact in args.artefacts:  # one in memory at a time
        pipeline = entry.open_pipeline(args, artefact)
        measured = [measure_accuracy(pipeline, questions, keep, args.max_new_tokens) for keep in args.keep]
        found.append(Artefact(artefact, pipeline.provider, pipeline.manifest.decoder.dtype, measured))
    print(f"accuracy on {len(questions)} questions")
    print(describe(found))
    reports = [artefact.to_dict() for artefact in found]
    body = {"artefacts": reports} if len(reports) > 1 else reports[0]
    entry.write_report({"command": args.command, **body, "versions": entry.versions()}, args.output)
    return 0


def describe(artefacts: Sequence[Artefact]) -> str:
    """A table with a row for each artefact and keep ratio; a single artefact is not named in it."""
    kinds = list(artefacts[0].accuracy[0].shares)
    rows = [["artefact", "keep", "visual tokens", *kinds]]
    for artefact, name in zip(artefacts, _names([artefact.path for artefact in artefacts]), strict=True):
        for found in artefact.accuracy:
            percentages = [f"{100 * found.shares[kind]:.1f} %" for kind in kinds]
            rows.append([name, f"{found.keep:.2f}", f"{found.visual_tokens_kept:.0f}", *percentages])
    return table(rows if len(artefacts) > 1 else [row[1:] for row in rows])


def _names(paths: Sequence[Path]) -> list[str]:
    """The artefacts' names, or where two share one, their paths."""
    names = [path.absolute().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


if __name__ == "__main__":
    sys.exit(main())
