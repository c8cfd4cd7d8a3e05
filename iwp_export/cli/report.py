"""`iwp-export report`: the page of a report, or several reports beside each other."""

from __future__ import annotations

import argparse
from pathlib import Path

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


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("reports", metavar="REPORT.json", nargs="+", type=Path, help="what validate or bench wrote")
    add("-o", "--output", metavar="FILE", type=Path, help="HTML file; without it a summary is printed alone")
    add("--force", action="store_true", help="replace a page that is there already")


def execute(args: argparse.Namespace) -> int:
    """Print a summary, and write the page. Returns 1 if a report has a gate that failed."""
    from iwp_export.errors import OutputError
    from iwp_export.reports import comparison, page
    from iwp_export.reports.files import PAGE, check_outputs, refuse_repeated
    from iwp_export.reports.report import read_report
    from iwp_export.reports.summary import describe

    if args.output is not None:
        if args.output.suffix != PAGE:
            raise OutputError(f"a page's name ends in {PAGE}, got {args.output}", options=("output",))
        check_outputs([args.output], args.force)
    refuse_repeated(args.reports)
    reports = [read_report(path) for path in args.reports]
    whole = reports[0] if len(reports) == 1 else comparison.merged(reports)
    if whole is not None:
        print(describe(whole))
        made = page.make_page(whole) if args.output else None
    else:
        these = comparison.named(reports, args.reports)
        print(comparison.describe(these))
        made = comparison.make_page(these) if args.output else None
    if made is not None:
        made.write(args.output)
        print(f"wrote {args.output}")
    return 0 if all(report.passed for report in reports) else 1
