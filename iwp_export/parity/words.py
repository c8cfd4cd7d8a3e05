"""What a comparison found, in sentences and a table for the terminal. Needs no torch."""

from __future__ import annotations

from iwp_export.parity.figures import KeepFigures, Parity, StageFigures
from iwp_export.parity.gates import cosine_text, gates
from iwp_export.tables import table

COLUMNS = ("keep", "stage", "rows", "relative", "cosine", "absolute", "KL, nats", "worst place")


def verdict(parity: Parity) -> list[str]:
    """Sentences, the most important first."""
    failed = [gate for gate in gates(parity) if not gate.passed]
    keeps = ", ".join(f"{keep.keep:g}" for keep in parity.keeps)
    asked = f"{parity.samples} samples at keep {keeps}, {parity.new_tokens} tokens each"
    if not failed:
        return [f"The artefact is its reference but for {parity.dtype} rounding ({asked}).", *_ties(parity)]
    first = failed[0]
    where = f" at {first.where}" if first.where else ""
    return [
        f"The artefact is not its reference: {', '.join(gate.name for gate in failed)} ({asked}).",
        f"The first stage that fails is {first.name}: {first.measured}, allowed is {first.limit}{where}.",
        *([f"What to do: {first.remedy}."] if first.remedy else []),
        *_ties(parity),
    ]


def describe(parity: Parity) -> str:
    """The verdict, what it was compared with, and a line for each stage at each keep ratio."""
    return "\n".join([*verdict(parity), figures(parity)])


def figures(parity: Parity) -> str:
    """The same without the verdict."""
    rows = [COLUMNS, *stage_rows(parity)]
    return "\n".join([f"Reference: {parity.reference}.", *parity.notes, "", table(rows)])


def stage_rows(parity: Parity) -> list[tuple[str, ...]]:
    """Cells of `COLUMNS`."""
    rows = []
    for keep in parity.keeps:
        rows += [_stage_row(keep, stage) for stage in keep.stages]
        kept, tokens = keep.kept, keep.tokens
        known = [gap.gap for gap in kept.gaps if gap.gap is not None]
        gap = f"gap {max(known):.1e}" if known else ("gap unknown" if kept.gaps else "")
        same = f"{kept.choices - kept.differing} of {kept.choices} the same"
        rows.append(
            (
                f"{keep.keep:g}",
                "kept tokens",
                same,
                gap,
                "",
                "",
                "",
                kept.flaw or next((each.where for each in kept.gaps), ""),
            )
        )
        alike = f"{tokens.tokens - tokens.differing} of {tokens.tokens} the same"
        ties = f"{tokens.ties} ties" if tokens.ties else ""
        rows.append((f"{keep.keep:g}", "greedy tokens", alike, ties, "", "", "", tokens.where))
    return rows


def _stage_row(keep: KeepFigures, stage: StageFigures) -> tuple[str, ...]:
    numbers = (
        _number(stage.relative, ".1e"),
        "" if stage.cosine is None else cosine_text(stage.cosine),
        _number(stage.absolute, ".1e"),
        _number(stage.kl, ".1e"),
    )
    return f"{keep.keep:g}", stage.stage, f"{stage.rows:,}", *numbers, stage.flaw or stage.where


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _ties(parity: Parity) -> list[str]:
    """What differs and is no failure."""
    sentences = []
    differing = sum(keep.kept.differing for keep in parity.keeps)
    followed = sum(keep.kept.followed for keep in parity.keeps)
    if differing:
        rest = "" if followed == differing else f"; what comes after {differing - followed} of them was not compared"
        sentences.append(f"{differing} choices of tokens are not the reference's{rest}.")
    if ties := sum(keep.tokens.ties for keep in parity.keeps):
        sentences.append(f"{ties} greedy tokens differ where two were as likely.")
    return sentences
