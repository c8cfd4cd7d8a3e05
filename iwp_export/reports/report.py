"""The report of a validation or a benchmark: what was measured of an artefact, which gates it held, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from iwp_export.accuracy.figures import Accuracy
from iwp_export.bundle.document import Document, read_file, write_file
from iwp_export.bundle.recipe import Digest, Name, PruningSource, Settings
from iwp_export.bundle.schema import CONTROL
from iwp_export.device.state import DeviceState
from iwp_export.errors import ReportError
from iwp_export.latency.figures import Latency
from iwp_export.monitors.figures import Monitors
from iwp_export.parity.figures import Parity
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.view.figures import Gate


@dataclass(frozen=True)
class ReportArtefact:
    """What was measured.

    Attributes:
        name: of the bundle or the engine, without its folder.
        digest: SHA-256 of its manifest, which holds the hashes of its files.
        model: the checkpoint's name.
        model_type: its transformers type.
        dtype: of weights and activations.
        provider: what ran the graphs.
        pruning: the exported settings.
        pruning_source: where they come from.
    """

    name: Name
    digest: Digest
    model: Name
    model_type: Name
    dtype: Name
    provider: Name
    pruning: Settings
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

    def printable(self) -> Report:
        """The same with control characters, as file names, command lines and device files may have, as escapes.

        A file cannot hold them, nor should a terminal get them; what took minutes to measure is not lost for one.
        """
        return _printable(self)


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return CONTROL.sub(lambda found: ascii(found[0])[1:-1], value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _printable(getattr(value, field.name)) for field in fields(value)})
    if isinstance(value, Mapping):
        return {_printable(name): _printable(inner) for name, inner in value.items()}
    return tuple(map(_printable, value)) if isinstance(value, tuple) else value


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


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
    version=1,
    error=ReportError,
)
