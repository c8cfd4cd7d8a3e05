"""A bench as a file: JSON that is sealed and can be read back, or an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iwp_export.bundle.document import Document
from iwp_export.bundle.document_file import check_output, write_file
from iwp_export.errors import OutputError, ReportError
from iwp_export.report.page import Column, Page, Section, Table
from iwp_export.report.svg import check_installed
from iwp_export.validate.gates import Gate
from iwp_export.validate.latency.figures import Latency
from iwp_export.validate.latency.page import blocks

SUFFIXES = (".json", ".html")


@dataclass(frozen=True)
class Bench:
    """What a bench leaves: its figures, and its gates."""

    latency: Latency
    gates: tuple[Gate, ...]


BENCH_JSON = Document(
    Bench,
    "iwp-bench",
    noun="bench",
    foreign="is no bench's result: it",
    remedy="measure again",
    command=lambda data, where: "measure again",
    version=1,
    error=ReportError,
)


def check_report(path: Path, force: bool = False) -> None:
    """Refuse, before minutes of measuring, what cannot be written.

    Raises:
        OutputError: the name ends neither in .json nor in .html, it is there already, or there is no such folder.
        BackendError: matplotlib, which draws the page, is missing.
    """
    if path.suffix not in SUFFIXES:
        raise OutputError(f"a report's name ends in {' or '.join(SUFFIXES)}, got {path}", options=("output",))
    check_output(path, force)
    if not path.parent.is_dir():
        raise OutputError(f"Cannot write {path}: there is no folder {path.parent}", options=("output",))
    if path.suffix == ".html":
        check_installed()


def write_bench(path: Path, bench: Bench, force: bool = False) -> None:
    """Write NAME.json or NAME.html; see `check_report`."""
    if path.suffix == ".html":
        make_page(bench).write(path)
    else:
        write_file(BENCH_JSON, bench, path, force)


def make_page(bench: Bench) -> Page:
    """The page: the bench, then its gates.

    Raises:
        BackendError: matplotlib is missing.
    """
    rows = [
        (gate.name, "passed" if gate.passed else "FAILED", gate.measured, gate.limit, gate.where)
        for gate in _sorted(bench.gates)
    ]
    columns = [Column(title) for title in ("Gate", "", "Measured", "Allowed", "Where")]
    table = Table(columns, rows, "What must hold, failures first")
    latency = bench.latency
    return Page(
        f"Latency of {latency.artefact}",
        f"{latency.pairs} pairs, {latency.provider}",
        [*blocks(latency), Section("Gates", [table], level=3)],
    )


def _sorted(gates: Sequence[Gate]) -> list[Gate]:
    return sorted(gates, key=lambda gate: gate.passed)
