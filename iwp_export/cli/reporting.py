"""What the verbs with gates share: where the report goes, and the exit code."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from iwp_export.cli import flags

if TYPE_CHECKING:
    from iwp_export.reports.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `-o`, `--force` and `--json`."""
    add = flags.group(parser, "report").add_argument
    text = "the report: NAME.json, NAME.html or both"
    add("-o", "--output", metavar="FILE", type=Path, nargs="+", default=[], help=text)
    add("--force", action="store_true", help="replace files that are there already")
    add("--json", action="store_true", help="print the report as JSON: seconds, bytes and shares")


def check(args: argparse.Namespace, *inputs: Path | None) -> None:
    """Refuse, before minutes of work, files that cannot be written or that are read too; see `check_outputs`."""
    from iwp_export.reports.files import check_outputs

    check_outputs(args.output, args.force, args.artefact, inputs)


def command_line() -> str:
    """This process's, for a report."""
    return f"iwp-export {shlex.join(sys.argv[1:])}"


def finish(report: Report, args: argparse.Namespace) -> int:
    """Write and print a report; returns the exit code: 1 if a gate failed."""
    from iwp_export.reports.files import write_outputs
    from iwp_export.reports.report import REPORT_JSON
    from iwp_export.reports.summary import describe

    try:
        write_outputs(report, args.output, args.force)
    finally:  # what took minutes is shown even where the disk is full
        print(json.dumps(REPORT_JSON.to_dict(report), indent=2) if args.json else describe(report))
    return 0 if report.passed else 1
