"""What the commands of this package share: their arguments, their reports, and errors in one line."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from iwp_export.bundle.store import Bundle
from iwp_export.engine.files import SUFFIX, read_engine
from iwp_export.errors import IwpError
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.validate.questions import MAX_NEW_TOKENS, Question, read_questions


def make_parser(description: str | None, several: bool = False, needs_data: bool = True) -> argparse.ArgumentParser:
    """A parser with the arguments that every command takes.

    Args:
        description: what the command does, for its help.
        several: whether it takes several artefacts; the arguments then have a list `artefacts`, not an `artefact`.
        needs_data: whether a file of questions must be given.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    kind: dict[str, Any] = {"metavar": "ARTEFACT", "type": Path}
    if several:
        add("artefacts", nargs="+", help="bundles or engines (NAME.plan), to be compared", **kind)
    else:
        add("artefact", help="a bundle, or an engine (NAME.plan)", **kind)
    add("--data", metavar="FILE", type=Path, required=needs_data, help="questions, one JSON object a line")
    add("--limit", metavar="N", type=positive, help="only the first N questions")
    add(
        "--max-new-tokens",
        metavar="N",
        type=positive,
        default=MAX_NEW_TOKENS,
        help="length of an answer at most (default: %(default)s)",
    )
    add("--provider", help="what runs a bundle: cpu (the default), cuda, ...")
    add("--threads", metavar="N", type=positive, help="threads of one operator (default: the libraries' choice)")
    add("-o", "--output", metavar="FILE", type=Path, help="JSON file for the result")
    return parser


def open_questions(args: argparse.Namespace) -> list[Question]:
    """The questions that the arguments name.

    Raises:
        DataError: see `read_questions`.
    """
    return list(islice(read_questions(args.data), args.limit))


def open_pipeline(args: argparse.Namespace, artefact: Path | None = None) -> Pipeline:
    """An artefact that the arguments name: the only one, or `artefact` of several.

    Raises:
        BundleError, BackendError: see `Pipeline.open`.
    """
    options: dict[str, Any] = {} if args.provider is None else {"provider": args.provider}
    return Pipeline.open(artefact or args.artefact, threads=args.threads, **options)


def check_artefacts(artefacts: Sequence[Path]) -> None:
    """Refuse what is no artefact before work on the others begins.

    Raises:
        BundleError: one of them is missing or damaged.
    """
    for path in artefacts:
        if path.suffix == SUFFIX:
            read_engine(path)
        else:
            Bundle.open(path)


def write_report(report: Mapping[str, Any], output: Path | None) -> None:
    """Write a report as JSON, if the arguments name a file for it."""
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def run(
    parser: argparse.ArgumentParser,
    execute: Callable[[argparse.Namespace], int],
    module: str,
    arguments: Sequence[str] | None,
) -> int:
    """Run a command and return its exit code; an error that the user can mend is one line and 1.

    Args:
        parser: from `make_parser`.
        execute: does it. Its arguments have a `command` beside the parser's: the command line, for the report.
        module: name of the command's module in this package.
        arguments: the command line's; None is the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser.parse_args(given)
    args.command = f"python -m iwp_export.validate.{module} {shlex.join(given)}"
    try:
        return execute(args)
    except (IwpError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def positive(text: str) -> int:
    """A whole number of 1 or more, as argparse takes it."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value
