"""Reports whose figures a test gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from iwp_export.bundle.recipe import PruningSource
from iwp_export.device.state import Clock, DeviceState
from iwp_export.parity.figures import (
    Integrity,
    KeepFigures,
    KeptFigures,
    Parity,
    StageFigures,
    TokenFigures,
)
from iwp_export.pruning.settings import PruningSettings
from iwp_export.reports.report import Report, ReportArtefact
from iwp_export.view.figures import Gate

GOOD = Gate("logits", True, "2e-6", "1e-4", "question 3, token 2")
BAD = Gate("max-drop", False, "at least 4.0 % lost", "1.0 %", "keep 0.3", "keep more tokens")


def parity() -> Parity:
    """Of an artefact that is its reference but for rounding."""
    stage = StageFigures(
        "logits", 64, 2e-5, 1e-6, 0.999999, 1e-9, "question 3, token 2", "question 3", "question 3", ""
    )
    keep = KeepFigures(1.0, (stage,), KeptFigures(8, 0, (), 0, ""), TokenFigures(64, 0, 0, ""))
    return Parity("the checkpoint", "float32", 8, 8, (), Integrity(12, 9 << 20, ""), (keep,), ())


def report(name: str = "made.bundle", digest: str = "ab" * 32, **changes: Any) -> Report:
    """A report with no figures but those that are given."""
    artefact = ReportArtefact(name, digest, "tiny-llava", "llava", "float32", "cpu", PruningSettings(), PruningSource())
    state = DeviceState(
        system="Some Linux 6.1",
        cpu="Some CPU",
        cpus=2,
        cpu_clock=Clock(2400.0, 800.0, 3600.0, False),
        packages={"numpy": "2.4"},
    )
    made = Report(
        command="iwp-export validate made.bundle",
        made="2026-01-01T00:00:00+00:00",
        artefact=artefact,
        verdict=("Passed: 1 gates.", "All is well."),
        gates=(GOOD,),
        warnings=(),
        state=state,
    )
    return replace(made, **changes)
