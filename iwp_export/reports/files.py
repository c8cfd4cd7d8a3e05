"""Where reports go: NAME.json, which can be read back and compared, and NAME.html, which people look at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from iwp_export.bundle.document import check_output, plain_name
from iwp_export.errors import OutputError, ReportError
from iwp_export.reports.report import Report, write_report
from iwp_export.view.draw import check_installed

JSON, PAGE = ".json", ".html"


def check_outputs(
    paths: Sequence[Path], force: bool = False, artefact: Path | None = None, inputs: Sequence[Path | None] = ()
) -> None:
    """Refuse, before minutes of measuring, what cannot or should not be written.

    Args:
        paths: where reports go.
        force: replace files that are there already.
        artefact: what is measured, in whose folder no report belongs.
        inputs: files that are read; None is none.

    Raises:
        OutputError: a name ends neither in .json nor in .html or is given twice, a file is there already, is read too,
            or lies in the artefact.
        BackendError: matplotlib, which draws a page, is missing.
    """
    names = [plain_name(path, OutputError) for path in paths]
    places = [_place(path) for path in paths]
    read = [_place(path) for path in inputs if path is not None]
    for path, where, place in zip(paths, names, places, strict=True):
        if path.suffix not in (JSON, PAGE):
            raise OutputError(f"a report's name ends in {JSON} or {PAGE}, got {where}", options=("output",))
        if places.count(place) > 1:
            raise OutputError(f"{where} is given twice", options=("output",))
        if place in read:
            raise OutputError(f"{where} is read too: a report would replace it", options=("output",))
        if artefact is not None and artefact.is_dir() and place.is_relative_to(_place(artefact)):
            raise OutputError(
                f"{where} is inside {artefact}, which holds nothing but its own files: choose another",
                options=("output",),
            )
        check_output(path, force)
        if path.suffix == PAGE:
            check_installed()


def refuse_repeated(paths: Sequence[Path]) -> None:
    """Refuse a comparison of a report with itself.

    Raises:
        ReportError: two paths lead to one file.
    """
    places = [_place(path) for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise ReportError(f"{plain_name(path, ReportError)} is given twice")


def _place(path: Path) -> Path:
    """Where a path leads, through links; unlike `resolve` it takes links in a circle."""
    return Path(os.path.realpath(path))


def write_outputs(report: Report, paths: Sequence[Path], force: bool = False) -> None:
    """Write a report to each of the files; see `check_outputs`.

    Raises:
        OutputError: one cannot be written.
    """
    for path in paths:
        if path.suffix == PAGE:
            from iwp_export.reports.page import write_page

            write_page(path, report)
        else:
            write_report(report, path, force)
