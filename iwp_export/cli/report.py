"""`iwp-export report`: the page of a report, or several reports beside each other; and what verbs that report share."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwp_export.cli import flags

if TYPE_CHECKING:
    from iwp_export.reports.report import Report
    from iwp_export.view.view import View

DESCRIPTION = (
    "Make the page of a report that validate or bench wrote; of several about one artefact a single page;\n"
    "of others a comparison: desktop against Jetson, before against after. Needs no torch.\n"
    "Exit code 1: a gate of one of them failed; 2: it could not run."
)
EXAMPLES = """\
  iwp-export report report.json -o report.html
  iwp-export report validate.json bench.json -o shipped.html      one artefact: accuracy and latency on one page
  iwp-export report desktop.json jetson.json -o compared.html     what differs, with intervals
"""
EXIT_ERROR = 2
JSON, PAGE = ".json", ".html"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("reports", metavar="REPORT.json", nargs="+", type=Path, help="what validate or bench wrote")
    add("-o", "--output", metavar="FILE", type=Path, help="HTML file; without it a summary is printed alone")
    add("--force", action="store_true", help="replace a page that is there already")


def execute(args: argparse.Namespace) -> int:
    """Print a summary, and write the page. Returns 1 if a report has a gate that failed."""
    from iwp_export.bundle.outputs import check_outputs
    from iwp_export.errors import ReportError
    from iwp_export.reports.report import read_report
    from iwp_export.view.draw import check_installed

    if args.output:
        check_outputs([args.output], args.force, args.reports, kinds=(PAGE,), noun="page")
        check_installed()
    places = [os.path.realpath(path) for path in args.reports]
    for path, place in zip(args.reports, places, strict=True):
        if places.count(place) > 1:
            raise ReportError(f"{path} is given twice")
    reports = [read_report(path) for path in args.reports]
    title, subtitle, views = _page(reports, args.reports)
    show(views)
    if args.output:
        from iwp_export.view.html import write_page

        write_page(args.output, title, subtitle, views)
        print(f"wrote {args.output}")
    return 0 if all(report.passed for report in reports) else 1


def _page(reports: Sequence[Report], paths: Sequence[Path]) -> tuple[str, str, list[View]]:
    """Title, subtitle and views of one report, of several about one artefact, or of a comparison."""
    from iwp_export.reports import comparison

    whole = comparison.merged(reports)
    if whole is not None:
        return whole.title, whole.subtitle, whole.views()
    these = comparison.named(reports, paths)
    return comparison.TITLE, " · ".join(each.name for each in these), comparison.views(these)


def show(views: Sequence[View]) -> None:
    """Print views."""
    from iwp_export.view.terminal import render

    print(render(views))


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Declare `-o`, `--force` and `--json` of a verb that measures."""
    add = flags.group(parser, "report").add_argument
    text = "the report: NAME.json, NAME.html or both"
    add("-o", "--output", metavar="FILE", type=Path, nargs="+", default=[], help=text)
    add("--force", action="store_true", help="replace files that are there already")
    add("--json", action="store_true", help="print the report as JSON: seconds, bytes and shares")


def check_reports(paths: Sequence[Path], force: bool, inputs: Sequence[Path | str | None]) -> None:
    """Refuse, before minutes of work, reports that cannot or must not be written; see `bundle.outputs.check_outputs`.

    Raises:
        OutputError: one of them.
        BackendError: matplotlib, which draws a page, is missing.
    """
    from iwp_export.bundle.outputs import check_outputs
    from iwp_export.view.draw import check_installed

    check_outputs(paths, force, inputs, kinds=(JSON, PAGE), noun="report")
    if any(path.suffix == PAGE for path in paths):
        check_installed()


def command_line() -> str:
    """This process's, for a report."""
    return f"iwp-export {shlex.join(sys.argv[1:])}"


def finish(reports: Sequence[Report], args: argparse.Namespace) -> int:
    """Write and print the report of an artefact, or the comparison of several; returns 1 if a gate failed, else 0."""
    from iwp_export.errors import OutputError, os_reason
    from iwp_export.files import whole_file
    from iwp_export.reports.report import REPORT_JSON
    from iwp_export.view.html import write_page

    found: list[dict[str, Any]] = [REPORT_JSON.to_dict(report) for report in reports]
    single = len(reports) == 1
    page = _page(reports, getattr(args, "artefacts", ()))
    shown = reports[0].findings() if single else page[2]
    text = json.dumps(found[0] if single else {"artefacts": found}, indent=2)
    try:
        for path in args.output:
            if path.suffix == PAGE:
                write_page(path, *page)
                continue
            with whole_file(path) as file:
                file.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {os_reason(error)}", options=("output",)) from error
    finally:  # what took minutes is shown even where the disk is full
        print(text) if args.json else show(shown)
    return 0 if all(report.passed for report in reports) else 1
