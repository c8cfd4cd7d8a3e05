"""Gates: what an artefact must hold to be passed, and whether it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iwp_export.tables import table


@dataclass(frozen=True)
class Gate:
    """One requirement and what was found.

    Attributes:
        name: what is required, such as `logits` or `max-drop`.
        passed: whether it holds.
        measured: what was found, with its unit.
        limit: what was allowed, with its unit.
        where: the worst place, such as a sample, a layer and a token; empty if there is only one.
        remedy: what to do about a failure; empty if it holds, or if nothing in particular would help.
    """

    name: str
    passed: bool
    measured: str
    limit: str
    where: str = ""
    remedy: str = ""


def describe(gates: Sequence[Gate]) -> str:
    """A table for the terminal, failures first, and under it what to do about them."""
    rows = [["gate", "", "measured", "allowed", "where"]]
    for gate in sorted(gates, key=lambda gate: gate.passed):
        rows.append([gate.name, "passed" if gate.passed else "FAILED", gate.measured, gate.limit, gate.where])
    remedies = [f"{gate.name}: {gate.remedy}" for gate in gates if not gate.passed and gate.remedy]
    return "\n".join([table(rows), *dict.fromkeys(remedies)])


def strict_gate(doubts: Sequence[str]) -> Gate:
    """What makes figures unreliable, as a gate; a report has the warnings themselves, with what to do about each."""
    count = "1 warning" if len(doubts) == 1 else f"{len(doubts)} warnings"
    return Gate("no warnings", not doubts, count, "0 warnings")
