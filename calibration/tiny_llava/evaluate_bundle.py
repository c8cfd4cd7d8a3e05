"""Accuracy of a tiny-llava bundle, without torch: `python -m calibration.tiny_llava.evaluate_bundle BUNDLE`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import iwp_export
from calibration.tiny_llava.heldout import Question, load
from calibration.tiny_llava.vocabulary import KINDS
from iwp_export.errors import IwpError
from iwp_export.progress import progress
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.tables import table

KEEPS = (1.0, 0.3, 0.11)
MAX_NEW_TOKENS = 4
"""A right answer is one word and <eos>; what goes on beyond that is wrong anyway."""


def evaluate(pipeline: Pipeline, questions: Sequence[Question], keep: float) -> dict[str, float]:
    """Share of right answers, by kind of question and over all, and the mean number of visual tokens kept."""
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    kept = 0
    with progress(f"Answering at keep {keep:.2f}", len(questions)) as advance:
        for question in questions:
            result = pipeline(question.image, question.question, max_new_tokens=MAX_NEW_TOKENS, keep=keep)
            right[question.kind].append(result.text == question.answer)
            kept += result.visual_tokens_kept
            advance(1)
    every = [answer for answers in right.values() for answer in answers]
    shares = {kind: sum(answers) / len(answers) for kind, answers in right.items() if answers}
    return {"visual tokens": kept / len(questions), **shares, "overall": sum(every) / len(every)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="folder that `iwp-export tiny-llava` wrote")
    parser.add_argument("--keep", type=float, nargs="+", default=KEEPS, help="keep ratios (default: 1.0 0.3 0.11)")
    parser.add_argument("--limit", type=int, help="only the first so many of the 600 questions")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    questions = load(limit=args.limit)
    try:
        pipeline = iwp_export.load(args.bundle)
        shares = {keep: evaluate(pipeline, questions, keep) for keep in args.keep}
    except IwpError as error:
        sys.exit(f"error: {error}")
    if args.json:
        print(json.dumps({"questions": len(questions), "keep": shares}, indent=1))
        return
    columns = list(next(iter(shares.values())))
    rows = [[f"{keep:.2f}", *(_cell(name, found[name]) for name in columns)] for keep, found in shares.items()]
    print(f"accuracy on {len(questions)} held-out questions")
    print(table([["keep", *columns], *rows]))


def _cell(name: str, value: float) -> str:
    return f"{value:.0f}" if name == "visual tokens" else f"{100 * value:.1f} %"


if __name__ == "__main__":
    main()
