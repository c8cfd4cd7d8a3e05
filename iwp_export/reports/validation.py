"""A validation: an artefact against its reference, its accuracy on questions, and where its model reads the image."""

from __future__ import annotations

import os
from pathlib import Path

from iwp_export.accuracy import verdict as accuracy_verdict
from iwp_export.accuracy.measure import measure_accuracy
from iwp_export.accuracy.scoring import check_answers, check_limit, find_score
from iwp_export.device.state import read_state, warnings
from iwp_export.engine.files import SUFFIX
from iwp_export.errors import BackendError, DataError, SettingsError
from iwp_export.monitors import verdict as monitors_verdict
from iwp_export.monitors.figures import Monitors
from iwp_export.parity import check as parity_check
from iwp_export.parity import verdict as parity_verdict
from iwp_export.parity.check import open_reference
from iwp_export.parity.figures import Parity
from iwp_export.parity.observation import ParityReference
from iwp_export.parity.recording import RECORDING, check_recording, record
from iwp_export.questions import SHIPPED, DataSet, open_data
from iwp_export.reports.report import Report, ReportArtefact, headline, now
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.settings import CHECKPOINT, NOTHING, ValidationSettings
from iwp_export.view.figures import Gate, strict_gate


def validate(path: Path, settings: ValidationSettings, command: str, force: bool = False) -> Report:
    """Open an artefact and validate it.

    Args:
        path: a bundle's folder, or NAME.plan.
        settings: what to do.
        command: the command line, for the report.
        force: replace a recording that is there already.

    Raises:
        SettingsError, BundleError, BackendError: also see `Pipeline.open`, `Validation` and `Validation.run`.
    """
    find_score(settings.score)
    check_limit("max_drop", settings.max_drop)
    check_limit("min_agreement", settings.min_agreement)
    if settings.threads is not None and (settings.against == CHECKPOINT or settings.monitors):
        from iwp_export.exporter.loading import limit_threads

        limit_threads(settings.threads)
    pipeline = Pipeline.open(path, provider=settings.provider, threads=settings.threads)
    return Validation(pipeline, path, settings).run(command, force)


class Validation:
    """A validation of an artefact that is open.

    Args:
        pipeline: the artefact.
        path: its place.
        settings: what to do.

    Raises:
        SettingsError: the artefact would be compared with itself.
        DataError: there are no questions, or only some have answers.
    """

    def __init__(self, pipeline: Pipeline, path: Path, settings: ValidationSettings) -> None:
        _refuse_itself(pipeline, path, settings.against)
        self._pipeline, self._path, self._settings = pipeline, path, settings
        self._data = self._open_data()
        if self._data is not None:
            check_answers(self._data.questions)
        self._before = read_state()

    def run(self, command: str, force: bool = False) -> Report:
        """Validate.

        Args:
            command: the command line, for the report.
            force: replace a recording that is there already.

        Raises:
            CheckpointError, BackendError, RequestError, RecordingError, OutputError: see `open_reference`,
                `check_parity`, `record` and `measure_accuracy`.
        """
        settings, pipeline, data = self._settings, self._pipeline, self._data
        if settings.record is not None:
            check_recording(settings.record, force)
        verdict, gates, doubts = list[str](), list[Gate](), list[str]()
        parity = accuracy = monitors = None
        if settings.against != NOTHING:
            reference = open_reference(
                pipeline,
                settings.against,
                checkpoint=settings.checkpoint,
                device=settings.device,
                dtype=settings.checkpoint_dtype,
                threads=settings.threads,
            )
            parity = self._parity(reference, force)
            doubts += parity_verdict.warnings(parity)
            gates += parity_verdict.gates(parity)
            verdict += parity_verdict.view(parity).sentences
        if data is not None:
            accuracy = measure_accuracy(pipeline, data, settings.keep, settings.score, settings.max_new_tokens)
            found = accuracy_verdict.gates(accuracy, settings.max_drop, settings.min_agreement)
            gates += found
            verdict += accuracy_verdict.view(accuracy).sentences
            doubts += accuracy_verdict.warnings(accuracy, found)
        if settings.monitors:
            monitors = self._monitors()
            verdict += monitors_verdict.view(monitors).sentences
            doubts += monitors_verdict.warnings(monitors)
        state = read_state()
        doubts += warnings(state, self._before)
        gates += [strict_gate(doubts)] if settings.strict else []
        return Report(
            command=command,
            made=now(),
            artefact=ReportArtefact.of(self._path, pipeline),
            verdict=(headline(gates), *verdict),
            gates=tuple(gates),
            warnings=tuple(doubts),
            state=state,
            parity=parity,
            accuracy=accuracy,
            monitors=monitors,
        ).printable()

    def _open_data(self) -> DataSet | None:
        """The questions; None where there are none and a recording brings its own."""
        settings, model = self._settings, self._pipeline.manifest.model.name
        wanted = settings.data is not None or model in SHIPPED
        if not wanted and Path(settings.against).suffix == RECORDING and not settings.monitors:
            if settings.max_drop is not None or settings.min_agreement is not None:
                raise DataError("a gate of accuracy needs questions: give a file of JSON lines", options=("data",))
            return None
        return open_data(settings.data, model, settings.limit)

    def _parity(self, reference: ParityReference, force: bool) -> Parity:
        settings, questions = self._settings, None
        if self._data is not None and reference.samples is None:
            questions = self._data.questions[: settings.parity_samples]
        if settings.record is not None:
            assert questions is not None
            keeps = parity_check.KEEPS
            tokens = settings.parity_tokens or parity_check.NEW_TOKENS
            record(reference, questions, keeps, settings.record, tokens, settings.hidden_states, force)
        return parity_check.check_parity(
            self._pipeline,
            reference,
            questions,
            max_new_tokens=settings.parity_tokens,
            hidden_states=settings.hidden_states,
            path=self._path,
        )

    def _monitors(self) -> Monitors:
        settings = self._settings
        assert self._data is not None
        try:
            from iwp_export.backends.torch.session import TorchSession
            from iwp_export.monitors.measure import measure_monitors
            from iwp_export.scorer import Reference
        except ModuleNotFoundError as error:
            if str(error.name).startswith("iwp_export"):
                raise
            raise BackendError(
                f"monitors need {error.name}; to get it: pip install 'iwp-export[export]'", options=("monitors",)
            ) from error
        manifest = self._pipeline.manifest
        reference = Reference.of(manifest, settings.checkpoint)
        session = TorchSession(reference.model, reference.family, manifest.pruning)
        return measure_monitors(self._pipeline, session, self._data, max_new_tokens=settings.max_new_tokens)


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
