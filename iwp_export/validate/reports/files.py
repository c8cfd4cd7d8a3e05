"""Where reports go: NAME.json, which can be read back and compared, and NAME.html, which people look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iwp_export.bundle.document_file import check_output
from iwp_export.errors import OutputError
from iwp_export.report.svg import check_installed
from iwp_export.validate.reports.report import Report, write_report

JSON, PAGE = ".json", ".html"


def check_outputs(paths: Sequence[Path], force: bool = False) -> None:
    """Refuse, before minutes of measuring, what cannot be written.

    Raises:
        OutputError: a name ends neither in .json nor in .html or is given twice, or a file is there already.
        BackendError: matplotlib, which draws a page, is missing.
    """
    for path in paths:
        if path.suffix not in (JSON, PAGE):
            raise OutputError(f"a report's name ends in {JSON} or {PAGE}, got {path}", options=("output",))
        if paths.count(path) > 1:
            raise OutputError(f"{path} is given twice", options=("output",))
        check_output(path, force)
        if path.suffix == PAGE:
            check_installed()


def write_outputs(report: Report, paths: Sequence[Path], force: bool = False) -> None:
    """Write a report to each of the files; see `check_outputs`.

    Raises:
        OutputError: one cannot be written.
    """
    for path in paths:
        if path.suffix == PAGE:
            from iwp_export.validate.reports.page import write_page

            write_page(path, report)
        else:
            write_report(report, path, force)
