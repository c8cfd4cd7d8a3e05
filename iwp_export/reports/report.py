"""The report of a validation or a bench: what was measured of an artefact, which gates it held, and its views."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from iwp_export.accuracy import verdict as accuracy_verdict
from iwp_export.accuracy.figures import Accuracy
from iwp_export.bundle.document import Document, read_file, write_file
from iwp_export.bundle.recipe import SHOWN_DIGITS, Digest, Name, PruningSource
from iwp_export.bundle.schema import CONTROL
from iwp_export.device.state import DeviceState, facts, read_state, warnings
from iwp_export.errors import ReportError
from iwp_export.latency import verdict as latency_verdict
from iwp_export.latency.figures import Latency
from iwp_export.monitors import verdict as monitors_verdict
from iwp_export.monitors.figures import Monitors
from iwp_export.parity import verdict as parity_verdict
from iwp_export.parity.figures import Parity
from iwp_export.pruning.settings import PruningSettings
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.view.figures import Gate, gates_view, strict_gate
from iwp_export.view.view import View

VIEWS: Mapping[str, Callable[[Any], View]] = {
    "accuracy": accuracy_verdict.view,
    "latency": latency_verdict.view,
    "parity": parity_verdict.view,
    "monitors": monitors_verdict.view,
}
"""Fields of a report that hold a proof's figures, in the order in which they are shown."""


@dataclass(frozen=True)
class ReportArtefact:
    """What was measured: an artefact by its manifest, whose SHA-256 `digest` is, and the provider that ran it."""

    name: Name
    digest: Digest
    model: Name
    model_type: Name
    dtype: Name
    provider: Name
    pruning: PruningSettings
    pruning_source: PruningSource

    @classmethod
    def of(cls, path: Path, pipeline: Pipeline) -> ReportArtefact:
        """Of an artefact that is open."""
        manifest = pipeline.manifest
        return cls(
            path.absolute().name,
            str(manifest.to_dict()["digest"]),
            manifest.model.name,
            manifest.model.model_type,
            manifest.decoder.dtype,
            pipeline.provider,
            manifest.pruning,
            manifest.pruning_source,
        )


@dataclass(frozen=True)
class Report:
    """The content of a report's file.

    Attributes:
        command: the command line that made it.
        made: when, in UTC, as ISO 8601.
        artefact: what was measured.
        verdict: what was found, in sentences, the most important first.
        gates: what was required, and whether it holds.
        warnings: what makes figures unreliable, such as clocks that are not locked.
        state: the machine after the measurement, with the versions of what figures depend on.
        parity, accuracy, monitors, latency: what was measured; None is what was not.
    """

    command: str
    made: str
    artefact: ReportArtefact
    verdict: tuple[str, ...]
    gates: tuple[Gate, ...]
    warnings: tuple[str, ...]
    state: DeviceState
    parity: Parity | None = None
    accuracy: Accuracy | None = None
    monitors: Monitors | None = None
    latency: Latency | None = None

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(gate.passed for gate in self.gates)

    @property
    def measured(self) -> list[str]:
        """The fields that hold figures."""
        return [name for name in VIEWS if getattr(self, name) is not None]

    @property
    def title(self) -> str:
        """Of its page."""
        return f"{self.artefact.name}: {'passed' if self.passed else 'FAILED'}"

    @property
    def subtitle(self) -> str:
        """The line below it."""
        return f"{self.artefact.model} · {self.artefact.dtype} · {self.artefact.provider} · {self.made}"

    @property
    def device(self) -> str:
        """What the machine is called: its board, its GPU and its processor, as far as they are known."""
        state = self.state
        return ", ".join(name for name in (state.board, state.gpu, state.cpu) if name) or "an unknown machine"

    def facts(self) -> list[tuple[str, object]]:
        """What was measured, on what, and when."""
        artefact = self.artefact
        return [
            ("artefact", f"{artefact.name} ({artefact.digest[:SHOWN_DIGITS]})"),
            ("model", f"{artefact.model} ({artefact.model_type})"),
            ("type", artefact.dtype),
            ("runs on", artefact.provider),
            ("device", self.device),
            ("pruning layer", artefact.pruning.layer),
            ("keep", artefact.pruning.keep),
            ("settings from", artefact.pruning_source),
            ("made", self.made),
        ]

    def findings(self) -> list[View]:
        """The verdict and what it rests on.

        The sentences of each proof are in the verdict, so its own view goes without them.
        """
        return [
            View(self.title, self.verdict),
            *([View("Warnings", self.warnings)] if self.warnings else []),
            *([gates_view(self.gates)] if self.gates else []),
            *(replace(VIEWS[name](getattr(self, name)), sentences=()) for name in self.measured),
        ]

    def views(self) -> list[View]:
        """The findings, the machine, and where the figures come from: for a page, and for who was not there."""
        pruning = ", ".join(f"{name} {value}" for name, value in vars(self.artefact.pruning).items())
        provenance = [*self.facts(), ("digest", self.artefact.digest), ("pruning", pruning)]
        machine = View("Machine", facts=facts(self.state))
        return [*self.findings(), machine, View("How it was made", facts=provenance, command=self.command)]


def make_report(
    command: str,
    path: Path,
    pipeline: Pipeline,
    before: DeviceState,
    gates: Sequence[Gate],
    doubts: Sequence[str],
    strict: bool,
    **figures: Any,
) -> Report:
    """A report of what has just been measured.

    Args:
        command: the command line.
        path: the artefact's place.
        pipeline: the artefact.
        before: the machine before the measurement.
        gates, doubts: of the figures; the machine's warnings are added.
        strict: warnings fail.
        **figures: fields of `VIEWS`.
    """
    state = read_state()
    doubts = [*doubts, *warnings(state, before)]
    gates = [*gates, *([strict_gate(doubts)] if strict else [])]
    shown = [VIEWS[name](figures[name]) for name in VIEWS if figures.get(name) is not None]
    return _printable(
        Report(
            command=command,
            made=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            artefact=ReportArtefact.of(path, pipeline),
            verdict=(headline(gates), *(sentence for view in shown for sentence in view.sentences)),
            gates=tuple(gates),
            warnings=tuple(doubts),
            state=state,
            **figures,
        )
    )


def _printable(value: Any) -> Any:
    """The same with control characters, as file names, command lines and device files may have, as escapes.

    A file cannot hold them; what took minutes to measure is not lost for one.
    """
    if isinstance(value, str):
        return CONTROL.sub(lambda found: ascii(found[0])[1:-1], value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _printable(getattr(value, field.name)) for field in fields(value)})
    if isinstance(value, Mapping):
        return {_printable(name): _printable(inner) for name, inner in value.items()}
    return tuple(map(_printable, value)) if isinstance(value, tuple) else value


def headline(gates: Sequence[Gate]) -> str:
    """The first sentence of a verdict."""
    failed = [gate.name for gate in gates if not gate.passed]
    if failed:
        return f"FAILED: {', '.join(failed)} ({len(failed)} of {len(gates)} gates)."
    count = "1 gate" if len(gates) == 1 else f"{len(gates)} gates"
    return f"Passed: {count}." if gates else "Measured; no gate was set."


def read_report(path: Path | str) -> Report:
    """Read a report's file.

    Raises:
        ReportError: it is missing, is no report, of another version, or was changed by hand.
    """
    return read_file(REPORT_JSON, path)


def write_report(report: Report, path: Path | str, force: bool = False) -> Path:
    """Write a report's file, whole or not at all; see `write_file`."""
    return write_file(REPORT_JSON, report, path, force)


REPORT_JSON = Document(
    Report,
    "iwp-report",
    noun="report",
    foreign="is not a report: it",
    remedy="copy it again, or measure again",
    command=lambda data, where: "measure again",
    version=3,
    error=ReportError,
)
