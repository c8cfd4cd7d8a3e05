"""A benchmark's report: what was measured of an artefact's latency, the limits that it holds, and the machine."""

from __future__ import annotations

from pathlib import Path

from iwp_export.device.state import read_state, warnings
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.validate.gates import strict_gate
from iwp_export.validate.latency import words
from iwp_export.validate.latency.bench import BenchSettings, measure_latency
from iwp_export.validate.latency.gates import LatencyLimits, gates
from iwp_export.validate.latency.workload import Asks
from iwp_export.validate.reports.report import Report, ReportArtefact, headline, now


def bench(
    pipeline: Pipeline,
    path: Path,
    asks: Asks,
    settings: BenchSettings,
    limits: LatencyLimits,
    *,
    strict: bool = False,
    command: str = "",
) -> Report:
    """Measure an artefact and report.

    Args:
        pipeline: the artefact; nothing else should run on the machine.
        path: its place.
        asks: the requests.
        settings: how to measure.
        limits: what must hold.
        strict: warnings about the machine fail, such as clocks that are not locked.
        command: the command line, for the report.

    Raises:
        SettingsError, RequestError, BackendError: see `measure_latency`.
    """
    before = read_state()
    latency = measure_latency(pipeline, asks, settings, path.absolute().name)
    state = read_state()
    doubts = warnings(state, before)
    found = [*gates(latency, limits), *([strict_gate(doubts)] if strict else [])]
    return Report(
        command=command,
        made=now(),
        artefact=ReportArtefact.of(path, pipeline),
        verdict=(headline(found), *words.verdict(latency)),
        gates=tuple(found),
        warnings=tuple(doubts),
        state=state,
        latency=latency,
    )
