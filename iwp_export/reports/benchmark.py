"""A bench as a report: an artefact's latency, its gates, and the machine that it was measured on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iwp_export.device.state import read_state, warnings
from iwp_export.latency import bench, words
from iwp_export.latency.gates import LatencyLimits, gates
from iwp_export.latency.workload import choose_asks
from iwp_export.reports.report import Report, ReportArtefact, headline, now
from iwp_export.runtime.images import ImageSource
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.settings import BenchSettings
from iwp_export.view.figures import Gate, strict_gate


def benchmark(path: Path, settings: BenchSettings, images: Sequence[ImageSource], command: str) -> Report:
    """Measure an artefact's latency and check it.

    Args:
        path: a bundle's folder, or NAME.plan.
        settings: what to ask, how to measure, and what must hold.
        images: what is asked about, with the settings' prompt.
        command: the command line, for the report.

    Raises:
        SettingsError, DataError, RequestError, BundleError, BackendError: see `Pipeline.open`, `choose_asks` and
            `measure_latency`.
    """
    slower = settings.fail_if_slower and settings.fail_if_slower.replace("-", "_")
    limits = LatencyLimits(slower, settings.max_ttft_ms, settings.max_p99_ms)  # type: ignore[arg-type]
    measured = bench.BenchSettings(
        keep=settings.keep,
        new_tokens=settings.new_tokens,
        pairs=settings.pairs,
        warmup=settings.warmup,
        threads=settings.threads,
        needs_p99=settings.max_p99_ms is not None,
    )
    pipeline = Pipeline.open(path, provider=settings.provider, threads=settings.threads)
    asks = choose_asks(pipeline.manifest, images, settings.prompt, settings.data, settings.limit)
    before = read_state()
    latency = bench.measure_latency(pipeline, asks, measured, path.absolute().name)
    state = read_state()
    doubts = [*warnings(state, before), *words.doubts(latency)]
    found: list[Gate] = [*gates(latency, limits), *([strict_gate(doubts)] if settings.strict else [])]
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
