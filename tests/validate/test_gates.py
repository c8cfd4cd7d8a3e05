"""Gates and their table."""

from __future__ import annotations

from iwp_export.validate.gates import Gate, describe


def test_failures_come_first():
    gates = [
        Gate("logits", True, "1e-6", "1e-4"),
        Gate("kept tokens", False, "3 of 9 differ", "0", "sample 4, keep 0.3"),
    ]
    lines = describe(gates).splitlines()
    assert lines[1].split()[:3] == ["kept", "tokens", "FAILED"]
    assert lines[1].endswith("sample 4, keep 0.3")
    assert "passed" in lines[2]
