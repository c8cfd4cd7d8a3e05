"""What `validate` and `bench` measure of an artefact, as a report: parity, accuracy, monitors; or latency."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from iwp_export.accuracy import verdict as accuracy_verdict
from iwp_export.accuracy.measure import measure_accuracy
from iwp_export.accuracy.scoring import check_answers, check_limit
from iwp_export.bundle.outputs import plain_name
from iwp_export.bundle.store import Bundle
from iwp_export.device.state import read_state
from iwp_export.engine.files import SUFFIX, read_engine
from iwp_export.errors import BackendError, DataError, SettingsError
from iwp_export.latency import verdict as latency_verdict
from iwp_export.latency.bench import measure_latency, measure_repeatedly
from iwp_export.latency.requests import choose_questions
from iwp_export.monitors import verdict as monitors_verdict
from iwp_export.monitors.figures import Monitors
from iwp_export.parity import check as parity_check
from iwp_export.parity import verdict as parity_verdict
from iwp_export.parity.figures import Parity
from iwp_export.parity.observation import ParityReference
from iwp_export.parity.recording import RECORDING, check_recording, record
from iwp_export.questions import SHIPPED, DataSet, open_data
from iwp_export.reports.report import Report, make_report
from iwp_export.runtime.images import ImageSource
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.settings import CHECKPOINT, NOTHING, BenchSettings, ValidationSettings


def validate(path: Path, settings: ValidationSettings, command: str, force: bool = False) -> Report:
    """Validate an artefact.

    Args:
        path: a bundle's folder, or NAME.plan.
        settings: what to do.
        command: the command line, for the report.
        force: replace a recording that is there already.

    Raises:
        SettingsError: a value is out of range, or the artefact would be compared with itself.
        DataError: there are no questions, or some lack the answers that others have.
        BundleError, CheckpointError, BackendError, RequestError, RecordingError, OutputError: see `Pipeline.open`,
            `open_reference`, `check_parity`, `record` and `measure_accuracy`.
    """
    for name in ("max_drop", "min_agreement"):
        check_limit(name, getattr(settings, name))
    plain_name(Path(settings.against), DataError)
    if settings.record is not None:
        check_recording(settings.record, force, (path, settings.data, settings.against, settings.checkpoint))
    pipeline = Pipeline.open(path, provider=settings.provider, threads=settings.threads)
    _refuse_itself(pipeline, path, settings.against)
    data = _questions(pipeline, settings)
    before, reference, gates = read_state(), None, []
    doubts: list[str] = []
    figures: dict[str, Any] = {}
    if settings.against != NOTHING:
        reference = _reference(pipeline, settings)
        parity = figures["parity"] = _parity(pipeline, path, reference, data, settings)
        gates += parity_verdict.gates(parity)
        doubts += parity.notes
    if data is not None:
        accuracy = measure_accuracy(
            pipeline,
            data,
            settings.keep,
            settings.score,
            settings.max_new_tokens,
            None if reference is None else reference.answer,
            settings.parity_samples,
        )
        found = accuracy_verdict.gates(accuracy, settings.max_drop, settings.min_agreement)
        gates += found
        doubts += accuracy_verdict.warnings(accuracy, found)
        figures["accuracy"] = accuracy
        if settings.monitors:
            figures["monitors"] = _monitors(pipeline, reference, data, settings)
            doubts += monitors_verdict.warnings(figures["monitors"])
    return make_report(command, path, pipeline, before, gates, doubts, settings.strict, **figures)


def validate_each(paths: Sequence[Path], settings: ValidationSettings, command: str) -> list[Report]:
    """Ask several artefacts the same questions; only one is in memory at a time.

    Raises:
        SettingsError: settings that are for a single artefact's comparison with its checkpoint. Else as `validate`.
        BundleError: one of them is missing or damaged; found before the first is asked.
    """
    given = {"against": settings.against != CHECKPOINT, "record": settings.record, "monitors": settings.monitors}
    if options := tuple(name for name, value in given.items() if value):
        raise SettingsError("several artefacts are compared by their answers: leave these out", options=options)
    for path in paths:
        read_engine(path) if path.suffix == SUFFIX else Bundle.open(path)
    return [validate(path, replace(settings, against=NOTHING), command) for path in paths]


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
    before, repeats = read_state(), settings.repeat > 1
    latency = measure_repeatedly(path, asked, settings) if repeats else measure_latency(pipeline, asked, settings)
    gates, doubts = latency_verdict.gates(latency, settings), latency_verdict.warnings(latency)
    return make_report(command, path, pipeline, before, gates, doubts, settings.strict, latency=latency)


def _questions(pipeline: Pipeline, settings: ValidationSettings) -> DataSet | None:
    """The questions; None where there are none and a recording brings its own."""
    model = pipeline.manifest.model.name
    recorded = settings.data is None and model not in SHIPPED and Path(settings.against).suffix == RECORDING
    if recorded and not settings.monitors:
        if settings.max_drop is not None or settings.min_agreement is not None:
            raise DataError("a gate of accuracy needs questions: give a file of JSON lines", options=("data",))
        return None
    data = open_data(settings.data, model, settings.limit)
    check_answers(data.questions)
    return data


def _reference(pipeline: Pipeline, settings: ValidationSettings) -> ParityReference:
    return parity_check.open_reference(
        pipeline,
        settings.against,
        checkpoint=settings.checkpoint,
        device=settings.device,
        dtype=settings.checkpoint_dtype,
        threads=settings.threads,
    )


def _parity(
    pipeline: Pipeline,
    path: Path,
    reference: ParityReference,
    data: DataSet | None,
    settings: ValidationSettings,
) -> Parity:
    asked = None if data is None or reference.samples is not None else data.questions[: settings.parity_samples]
    if settings.record is not None and asked is not None:
        tokens = settings.parity_tokens or parity_check.NEW_TOKENS
        record(reference, asked, parity_check.KEEPS, settings.record, tokens, settings.hidden_states)
    return parity_check.check_parity(
        pipeline,
        reference,
        asked,
        max_new_tokens=settings.parity_tokens,
        hidden_states=settings.hidden_states,
        path=path,
    )


def _monitors(
    pipeline: Pipeline, reference: ParityReference | None, data: DataSet, settings: ValidationSettings
) -> Monitors:
    """Of the checkpoint that parity has loaded, else of one that is loaded for it.

    Raises:
        BackendError: torch is missing.
    """
    try:
        from iwp_export.monitors.measure import measure_monitors
        from iwp_export.parity.checkpoint import CheckpointReference
    except ModuleNotFoundError as error:
        if str(error.name).startswith("iwp_export"):
            raise
        need = f"monitors need {error.name}; to get it: pip install 'iwp-export[export]'"
        raise BackendError(need, options=("monitors",)) from error
    if not isinstance(reference, CheckpointReference):
        reference = _reference(pipeline, replace(settings, against=CHECKPOINT))
        assert isinstance(reference, CheckpointReference)
    return measure_monitors(pipeline, reference.session, data, settings.max_new_tokens)


def _refuse_itself(pipeline: Pipeline, path: Path, against: str) -> None:
    """Refuse a comparison that holds whatever the artefact is. By another provider it is one that may not.

    Raises:
        SettingsError: the reference is the artefact itself.
    """
    itself = against not in (CHECKPOINT, NOTHING) and os.path.realpath(path) == os.path.realpath(against)
    if itself and (path.suffix == SUFFIX or pipeline.provider == "cpu"):  # a reference runs on the CPU
        raise SettingsError(
            f"{against} is the artefact itself, which it always equals: compare with its checkpoint, a recording of "
            "it, or another artefact",
            options=("against",),
        )
