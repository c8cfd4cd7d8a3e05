"""Gates and their table."""

from __future__ import annotations

from iwp_export.view.figures import Gate, gates_view, strict_gate
from iwp_export.view.terminal import render


def test_failures_come_first():
    gates = [
        Gate("logits", True, "1e-6", "1e-4"),
        Gate("kept tokens", False, "3 of 9 differ", "0", "sample 4, keep 0.3"),
    ]
    lines = render([gates_view(gates)]).splitlines()
    assert lines[1].split()[:3] == ["kept", "tokens", "FAILED"]
    assert lines[1].endswith("sample 4, keep 0.3")
    assert "passed" in lines[2]


def test_what_to_do_about_a_failure_is_told_once():
    failed = Gate("max-drop", False, "4 %", "1 %", "keep 0.3", "ask 381 questions or more")
    held = Gate("logits", True, "0", "0", remedy="nothing")
    lines = render([gates_view([failed, Gate(**{**vars(failed), "where": "keep 0.5"}), held])]).splitlines()
    assert len(lines) == 6 and lines[-1] == "max-drop: ask 381 questions or more"


def test_a_warning_fails_where_it_is_asked_to():
    assert strict_gate(()).passed
    (gate,) = [strict_gate(["the GPU is throttled"])]
    assert (gate.passed, gate.measured, gate.limit) == (False, "1 warning", "0 warnings")
