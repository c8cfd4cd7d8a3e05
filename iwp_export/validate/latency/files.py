"""A bench as a file: JSON that is sealed and can be read back, or an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iwp_export.bundle.document import Document
from iwp_export.cache import whole_file
from iwp_export.errors import DataError, OutputError, os_reason
from iwp_export.report.page import Column, Page, Section, Table
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
    foreign="is no bench's result: it",
    remedy="measure again",
    command=lambda data, where: "measure again",
    version=1,
    error=DataError,
)


def check_output(path: Path) -> None:
    """Refuse, before minutes of measuring, what cannot be written.

    Raises:
        OutputError: the name ends neither in .json nor in .html, or there is no such folder.
    """
    if path.suffix not in SUFFIXES:
        raise OutputError(f"a report's name ends in {' or '.join(SUFFIXES)}, got {path}", options=("output",))
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}", options=("output",))


def write_bench(path: Path, bench: Bench) -> None:
    """Write NAME.json or NAME.html; one that is there is replaced.

    Raises:
        OutputError: it cannot be written.
        BackendError: matplotlib, which draws the page, is missing.
    """
    if path.suffix == ".html":
        make_page(bench).write(path)
        return
    try:
        with whole_file(path) as file:
            file.write_text(BENCH_JSON.to_text(bench), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {os_reason(error)}", options=("output",)) from error


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
