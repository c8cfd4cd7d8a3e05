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
    """A table for the terminal, failures first."""
    rows = [["gate", "", "measured", "allowed", "where"]]
    for gate in sorted(gates, key=lambda gate: gate.passed):
        rows.append([gate.name, "passed" if gate.passed else "FAILED", gate.measured, gate.limit, gate.where])
    return table(rows)


def strict_gate(doubts: Sequence[str]) -> Gate:
    """What makes figures unreliable, as a gate."""
    return Gate("no warnings", not doubts, f"{len(doubts)}", "0", remedy="; ".join(doubts))
