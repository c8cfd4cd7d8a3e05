"""A bench as a report: an artefact's latency, its gates, and the machine that it was measured on."""

from __future__ import annotations

from pathlib import Path

from iwp_export.device.state import read_state, warnings
from iwp_export.latency import words
from iwp_export.latency.bench import BenchSettings, measure_latency
from iwp_export.latency.gates import LatencyLimits, gates
from iwp_export.latency.workload import Asks
from iwp_export.reports.report import Report, ReportArtefact, headline, now
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.view.figures import Gate, strict_gate


def benchmark(
    pipeline: Pipeline,
    path: Path,
    asks: Asks,
    settings: BenchSettings,
    limits: LatencyLimits,
    command: str,
    strict: bool = False,
) -> Report:
    """Measure an artefact's latency and check it.

    Args:
        pipeline: the artefact.
        path: its place.
        asks: the requests.
        settings: how to measure.
        limits: what it must hold.
        command: the command line, for the report.
        strict: warnings fail, such as clocks that are not locked.

    Raises:
        SettingsError, RequestError, BackendError: see `measure_latency`.
    """
    before = read_state()
    latency = measure_latency(pipeline, asks, settings, path.absolute().name)
    state = read_state()
    doubts = [*warnings(state, before), *words.doubts(latency)]
    found: list[Gate] = [*gates(latency, limits), *([strict_gate(doubts)] if strict else [])]
    return Report(
        command=command,
        made=now(),
        artefact=ReportArtefact.of(path, pipeline),
        verdict=(headline(found), *words.verdict(latency)),
        gates=tuple(found),
        warnings=tuple(doubts),
        state=state,
        latency=latency,
    ).printable()
