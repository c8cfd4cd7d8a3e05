"""The part of a report's page about parity, made from the figures alone."""

from __future__ import annotations

from iwp_export.parity.figures import Parity
from iwp_export.parity.gates import gates
from iwp_export.parity.words import COLUMNS, stage_rows, verdict
from iwp_export.tables import human_bytes
from iwp_export.view.figures import Gate
from iwp_export.view.page import Block, Column, Fold, Pairs, Paragraph, Table, Verdict

HOW_TO_READ = (
    "Both sides run along the reference's greedy answers, so that one wrong token does not hide what comes after it. A "
    "row is what one token has at one place: its feature, its state, its key or its value. Relative is the length of "
    "a row's difference over that of the reference's row, or of its median row where that is longer."
)


def blocks(parity: Parity) -> list[Block]:
    """Verdict, gates, and all figures in a fold."""
    failed = [number for number, gate in enumerate(_ordered(parity)) if not gate.passed]
    rows = [
        (gate.name, "passed" if gate.passed else "FAILED", gate.measured, gate.limit, gate.where)
        for gate in _ordered(parity)
    ]
    columns = ("Gate", "Result", "Measured", "Allowed", "Worst place")
    integrity = parity.integrity
    files = "not read" if integrity is None else integrity.flaw or f"{integrity.files}, {human_bytes(integrity.bytes)}"
    numbers = frozenset({"rows", "relative", "cosine", "absolute", "KL, nats"})
    return [
        Verdict(verdict(parity)),
        Table(columns, rows, "Stages against the reference", frozenset(failed)),
        *(Paragraph(note) for note in parity.notes),
        Pairs(
            (
                ("Reference", parity.reference),
                ("Limits for", parity.dtype),
                ("Samples", parity.samples),
                ("Tokens of each answer", parity.new_tokens),
                ("Files", files),
            )
        ),
        Fold(
            "Every stage at every keep ratio",
            (
                Table(
                    [
                        Column(title.capitalize() if title != "KL, nats" else title, title in numbers)
                        for title in COLUMNS
                    ],
                    stage_rows(parity),
                    "Largest distances",
                ),
                Paragraph(HOW_TO_READ, quiet=True),
            ),
        ),
    ]


def _ordered(parity: Parity) -> list[Gate]:
    """Failures first."""
    return sorted(gates(parity), key=lambda gate: gate.passed)
