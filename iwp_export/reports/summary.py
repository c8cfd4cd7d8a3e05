"""A report for the terminal: verdict first, then the figures that it rests on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from iwp_export.accuracy import verdict as accuracy_verdict
from iwp_export.latency import verdict as latency_verdict
from iwp_export.monitors import verdict as monitors_verdict
from iwp_export.parity import verdict as parity_verdict
from iwp_export.reports.report import Report
from iwp_export.view import terminal
from iwp_export.view.figures import gates_view

WORDS: Mapping[str, Callable[[Any], str]] = {
    "accuracy": lambda accuracy: terminal.render([replace(accuracy_verdict.view(accuracy), sentences=(), notes=())]),
    "latency": lambda found: terminal.render([replace(latency_verdict.view(found), sentences=())]),
    "parity": lambda parity: terminal.render([replace(parity_verdict.view(parity), sentences=())]),
    "monitors": lambda found: terminal.render([replace(monitors_verdict.view(found), sentences=())]),
}
"""What makes text of each field of a report."""


def describe(report: Report) -> str:
    """Lines for the terminal."""
    parts = ["\n".join(report.verdict)]
    parts += [f"warning: {text}" for text in report.warnings]
    for field, words in WORDS.items():
        section = getattr(report, field)
        if section is not None:
            parts.append(words(section))
    if report.gates:
        parts.append(terminal.render([gates_view(report.gates)]))
    return "\n\n".join(parts)
