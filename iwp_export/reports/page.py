"""A report's page: the verdict first, then what it rests on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iwp_export.accuracy import verdict as accuracy_verdict
from iwp_export.device.state import facts
from iwp_export.latency import verdict as latency_verdict
from iwp_export.monitors import verdict as monitors_verdict
from iwp_export.parity import verdict as parity_verdict
from iwp_export.reports.report import Report
from iwp_export.view import axes, charts
from iwp_export.view import page as html
from iwp_export.view.figures import Gate
from iwp_export.view.svg import Svg
from iwp_export.view.view import Axis, Chart, Column, View


@dataclass(frozen=True)
class Part:
    """A section of a page: the report's field that it shows, its heading, and what makes blocks of the field."""

    field: str
    title: str
    blocks: Callable[[Any], Sequence[html.Block]]


PARTS = (
    Part("accuracy", accuracy_verdict.TITLE, lambda accuracy: blocks_of(accuracy_verdict.view(accuracy))),
    Part("latency", "Latency", lambda found: blocks_of(latency_verdict.view(found))),
    Part("parity", "Parity", lambda found: blocks_of(parity_verdict.view(found))),
    Part("monitors", "Where the model reads the image", lambda found: blocks_of(monitors_verdict.view(found))),
)


def write_page(path: Path, report: Report) -> None:
    """Write the page; a file that is there is replaced.

    Raises:
        BackendError: matplotlib is missing.
        OutputError: the file cannot be written.
    """
    make_page(report).write(path)


def make_page(report: Report) -> html.Page:
    """The page of one report.

    Raises:
        BackendError: matplotlib is missing.
    """
    artefact = report.artefact
    measured = [
        html.Section(part.title, _without_verdict(part.blocks(getattr(report, part.field))))
        for part in PARTS
        if getattr(report, part.field) is not None
    ]
    return html.Page(
        f"{artefact.name}: {'passed' if report.passed else 'FAILED'}",
        f"{artefact.model} · {artefact.dtype} · {artefact.provider} · {report.made}",
        (
            html.Verdict(report.verdict),
            *(
                [html.Section("Warnings", [html.Paragraph(text) for text in report.warnings])]
                if report.warnings
                else []
            ),
            *([gates_section(report.gates)] if report.gates else []),
            *measured,
            html.Section("Device", [html.Pairs(facts(report.state))]),
            _provenance(report),
        ),
    )


def blocks_of(view: View) -> list[html.Block]:
    """A view as blocks: a bridge for as long as some parts have views and some have blocks."""
    made: list[html.Block] = [html.Pairs(view.facts)] if view.facts else []
    made += [html.Chart(_drawn(chart), chart.caption) for chart in view.charts]
    for table in view.tables:
        columns = [html.Column(each.title, each.number) if isinstance(each, Column) else each for each in table.columns]
        rows = [["" if cell is None else cell for cell in row] for row in table.rows]
        made.append(html.Table(columns, rows, table.caption, table.strong))
    for example in view.examples:
        pictures = [html.Picture(each.png, each.alt, each.caption) for each in example.pictures]
        made.append(html.Paragraph(example.title))
        made.append(html.Beside((*pictures, html.Group([html.Pairs(example.facts)]))))
    return [*made, *(html.Paragraph(note, quiet=True) for note in view.notes)]


def _drawn(chart: Chart) -> Svg:
    lines = [charts.Line(each.name, each.x, each.y or each.x, each.low, each.high) for each in chart.series]
    return charts.lines(re.sub(r"\W+", "-", chart.title.lower()), chart.alt, lines, _axis(chart.x), _axis(chart.y))


def _axis(axis: Axis) -> axes.Axis:
    return axes.Axis(axis.label, axis.unit, axis.low, axis.high)


def _without_verdict(blocks: Sequence[html.Block]) -> list[html.Block]:
    """A part's blocks but for its own sentences, which the report's verdict has."""
    return [block for block in blocks if not isinstance(block, html.Verdict)]


def gates_section(gates: Sequence[Gate]) -> html.Section:
    """What was required, failures first."""
    ordered = sorted(gates, key=lambda gate: gate.passed)
    cells = [(gate.name, _word(gate), gate.measured, gate.limit, gate.where) for gate in ordered]
    failed = [gate for gate in ordered if not gate.passed]
    return html.Section(
        "Gates",
        (
            html.Table(
                ("Gate", "Result", "Measured", "Allowed", "Worst place"),
                cells,
                f"{len(failed)} of {len(gates)} gates failed" if failed else f"All {len(gates)} gates hold",
                frozenset(range(len(failed))),
            ),
            *(html.Paragraph(f"{gate.name}: {gate.remedy}") for gate in failed if gate.remedy),
        ),
    )


def _word(gate: Gate) -> str:
    return "passed" if gate.passed else "FAILED"


def _provenance(report: Report) -> html.Section:
    artefact = report.artefact
    facts: list[tuple[str, object]] = [
        ("made", report.made),
        ("artefact", artefact.name),
        ("digest", artefact.digest),
        ("model", f"{artefact.model} ({artefact.model_type})"),
        ("pruning", ", ".join(f"{name} {value}" for name, value in vars(artefact.pruning).items())),
        ("settings from", artefact.pruning_source),
    ]
    return html.Section("How it was made", [html.Command(report.command), html.Pairs(facts)])
