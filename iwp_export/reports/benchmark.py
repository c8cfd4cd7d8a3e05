"""A bench as a report: an artefact's latency, its gates, and the machine that it was measured on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iwp_export.device.state import read_state
from iwp_export.latency import verdict
from iwp_export.latency.bench import measure_latency, measure_repeatedly
from iwp_export.latency.requests import choose_questions
from iwp_export.reports.report import Report, make_report
from iwp_export.runtime.images import ImageSource
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.settings import BenchSettings


def benchmark(path: Path, settings: BenchSettings, images: Sequence[ImageSource], command: str) -> Report:
    """Measure an artefact's latency and check it.

    Args:
        path: a bundle's folder, or NAME.plan.
        settings: what to ask, how to measure, and what must hold.
        images: what is asked about, with the settings' prompt.
        command: the command line, for the report.

    Raises:
        SettingsError, DataError, RequestError, BundleError, BackendError: see `Pipeline.open`, `choose_questions` and
            `measure_latency`.
    """
    pipeline = Pipeline.open(path, provider=settings.provider, threads=settings.threads)
    asked = choose_questions(pipeline.manifest, images, settings.prompt, settings.data, settings.limit)
    before = read_state()
    if settings.repeat > 1:
        latency = measure_repeatedly(path, asked, settings)
    else:
        latency = measure_latency(pipeline, asked, settings)
    gates, doubts = verdict.gates(latency, settings), verdict.warnings(latency)
    return make_report(command, path, pipeline, before, gates, doubts, settings.strict, latency=latency)
