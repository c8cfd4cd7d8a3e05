"""What the commands of this package share: their arguments, their reports, and errors in one line."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from iwp_export.bundle.document import check_output
from iwp_export.bundle.schema import CONTROL
from iwp_export.bundle.store import Bundle
from iwp_export.engine.files import SUFFIX, read_engine
from iwp_export.errors import IwpError, OutputError, os_reason
from iwp_export.files import whole_file
from iwp_export.questions import MAX_NEW_TOKENS, Question, read_questions
from iwp_export.runtime.pipeline import Pipeline

INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143
"""Exit codes, as shells count them: 128 and the number of the signal."""


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
    """Write a report as JSON, whole or not at all, if the arguments name a file for it; one that is there is replaced.

    Raises:
        OutputError: it cannot be written.
    """
    if output is None:
        return
    try:
        with whole_file(output) as file:
            file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {output}: {os_reason(error)}") from error


def run(
    parser: argparse.ArgumentParser,
    execute: Callable[[argparse.Namespace], int],
    module: str,
    arguments: Sequence[str] | None,
) -> int:
    """Run a command and return its exit code; an error that the user can mend is one line and 1, Ctrl-C is 130.

    Args:
        parser: from `make_parser`.
        execute: does it. Its arguments have a `command` beside the parser's: the command line, for the report.
        module: name of the command's module in this package.
        arguments: the command line's; None is the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser.parse_args(given)
    args.command = f"python -m calibration.studies.{module} {shlex.join(given)}"
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(TERMINATED))  # through the open `with` blocks
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # where torch is not wanted, its absence is no advice
    try:
        _check_outputs(args)
        code = execute(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (IwpError, OSError, ModuleNotFoundError) as error:
        if str(getattr(error, "name", "")).startswith("iwp_export"):
            raise  # a bug
        text = CONTROL.sub("\ufffd", " ".join(str(error).split()))
        hint = "; to get it: pip install 'iwp-export[export]'" if isinstance(error, ModuleNotFoundError) else ""
        print(f"error: {text}{hint}", file=sys.stderr)
        return 1
    return code


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse, before minutes of work, what cannot be written, and what is read too.

    Raises:
        OutputError: one is such a file.
    """
    written = [path for path in (args.output, getattr(args, "picture", None)) if path is not None]
    places = [os.path.realpath(path) for path in written]
    for path, place in zip(written, places, strict=True):
        where = check_output(path, force=True)
        if places.count(place) > 1 or (args.data is not None and place == os.path.realpath(args.data)):
            raise OutputError(f"{where} is given twice: the result would replace it")


def positive(text: str) -> int:
    """A whole number of 1 or more, as argparse takes it."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value
