"""What scores show: gates, what makes them doubtful, and one view of one artefact or of several."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO

from PIL import Image

from iwp_export.accuracy.figures import Accuracy, Answered, AtKeep, Original
from iwp_export.accuracy.scoring import Drop, check_drop
from iwp_export.view.figures import Gate, percent, share_of, spread
from iwp_export.view.view import Axis, Chart, Column, Example, Picture, Series, Table, View

MAX_DROP = "max-drop"
CUT = 0.05
"""Share of answers that were cut off beyond which figures are doubtful."""
MOST_OTHERS = 0.5
"""Share of unpruned answers that must be the checkpoint's where nothing says which are right."""
PRUNE_LESS = "keep more visual tokens, prune later, or calibrate"


def gates(accuracy: Accuracy, max_drop: float | None = None, min_agreement: float | None = None) -> list[Gate]:
    """Gates of the artefact's own keep ratio, or of every measured one if that was not measured.

    What is lost is measured from the artefact's own unpruned answers; whether those are the checkpoint's is a gate too.

    Args:
        accuracy: what was measured.
        max_drop: share of the unpruned score that may be lost, in (0, 1), see `scoring.check_drop`.
        min_agreement: share of answers that must be the unpruned model's, in (0, 1). The interval's lower end counts.
    """
    made = [] if accuracy.original is None else [_original_gate(accuracy.original)]
    for found in accuracy.shipped:
        drops = {}
        if max_drop is not None:
            drops[MAX_DROP] = check_drop(accuracy.unpruned.scores or None, found.scores or found.same, max_drop)
        if min_agreement is not None:
            drops["min-agreement"] = check_drop(None, found.same, 1 - min_agreement)
        for name, drop in drops.items():
            gate = drop_gate(drop, f"keep {found.keep:g}", name)
            if found.keep == 1:  # it passes only if the artefact's keep is 1
                holds = accuracy.own_keep == 1
                remedy = "" if holds else f"measure at the artefact's own keep ratio, {accuracy.own_keep:g}"
                measured = "nothing is pruned" if holds else "no pruned answers"
                gate = replace(gate, passed=holds, measured=measured, remedy=remedy)
            made.append(gate)
    return made


def _original_gate(found: Original) -> Gate:
    """Fails where the unpruned answers are shown to be worse than the checkpoint's. Single ones may differ: in 16 bits
    long answers part at the first tie."""
    same = share_of(found.same)
    measured = f"{sum(found.same)} of {len(found.same)} are the checkpoint's"
    passed, limit = same.high >= MOST_OTHERS, f"at least {percent(MOST_OTHERS)} of them, as far as these show"
    if found.relative is not None:
        measured += f"; {spread(found.relative)} of its score"
        passed, limit = found.relative.high >= 1, "not shown to score less than it"
    remedy = "" if passed else "look at the parity gates; export again"
    return Gate("unpruned answers", passed, measured, limit, "", remedy)


def drop_gate(drop: Drop, where: str, name: str = MAX_DROP) -> Gate:
    """A drop in the words of a gate, with the reason why it may not pass."""
    found, least, of = drop.relative, 1 - drop.allowed, "are the unpruned model's"
    limit = f"at least {percent(least)} of the answers"
    if drop.answered:
        limit, of = f"a drop of at most {percent(drop.allowed)} of the unpruned score", "of it"
    elif name == MAX_DROP:
        limit = f"at most {percent(drop.allowed)} of the answers changed (the questions have no right ones)"
    if found is None:
        remedy = "look at the answers: another score, or questions that the model can answer"
        return Gate(name, False, "the unpruned model scores 0", limit, where, remedy)
    if drop.passed:
        remedy = ""
    elif found.high < least:
        remedy = f"{PRUNE_LESS}: the loss is shown to be larger"
    elif drop.questions < drop.needed:
        remedy = (
            f"{drop.questions:,} questions cannot show it, even if no answer changes: at least {drop.needed:,} are "
            "needed; ask more, or allow more"
        )
    elif drop.holds:
        remedy = "the loss may be small enough, but these questions do not show it: ask more, or allow more"
    else:
        remedy = PRUNE_LESS
    return Gate(name, drop.passed, f"{spread(found)} {of}", limit, where, remedy)


def warnings(accuracy: Accuracy, made: Sequence[Gate] = ()) -> list[str]:
    """What makes the figures doubtful, and what the gates that were made of them do not show."""
    found = []
    keeps = ", ".join(f"{each.keep:g}" for each in accuracy.shipped)
    if made and accuracy.own_keep not in [each.keep for each in accuracy.shipped]:
        found.append(f"The gates are of keep {keeps}; the artefact's own keep {accuracy.own_keep:g} was not measured.")
    if accuracy.calibrated:
        found.append(
            f"The pruning settings were chosen on {accuracy.data}, which flatters them: validate on other questions."
        )
    if accuracy.unpruned.score is not None and accuracy.unpruned.score.mean == 0:
        found.append(f"The unpruned model scores 0 ({accuracy.score}): look at its answers; another score may fit.")
    cut = max(each.cut for each in accuracy.at)
    if cut > CUT:
        found.append(f"{percent(cut)} of the answers were cut off after {accuracy.max_new_tokens} tokens: allow more.")
    return found


def view(accuracy: Accuracy) -> View:
    """What was measured of one artefact."""
    lines = [_line("right answers", accuracy)] if accuracy.score else []
    lines.append(_line("same answer as unpruned", accuracy, agreement=True))
    shown = _view([("", accuracy)], lines)
    found, examples = [_found(accuracy, found) for found in accuracy.shipped], map(_example, accuracy.examples)
    return replace(shown, sentences=found, examples=[*examples])


def compare(named: Sequence[tuple[str, Accuracy]]) -> View:
    """Several artefacts in one table, under what makes their figures doubtful. All answered the same questions."""
    doubts = dict.fromkeys(text for _, accuracy in named for text in warnings(accuracy))
    shown = _view(named, [_line(*each) for each in named])
    return replace(shown, sentences=[f"Accuracy on {_asked(named[0][1])}.", *doubts])


def _view(named: Sequence[tuple[str, Accuracy]], lines: Sequence[Series]) -> View:
    """Of artefacts by name; a single one needs none, and its own keep ratio stands out."""
    first, several = named[0][1], len(named) > 1
    chart = Chart(
        "lines",
        "Answers against the share of visual tokens that stay",
        f"{lines[0].name} against the share of visual tokens that stay, at {len(lines[0].x)} budgets",
        lines,
        Axis("visual tokens that stay", "percent"),
        Axis("share of the answers", "percent"),
        caption="Bands are 95 % intervals. The point at the right end is keep 1, which prunes nothing.",
    )
    note = "The questions have no right answers: an answer counts as kept if it is the unpruned one."
    if first.score:
        note = (
            f"Score: {first.score}. Of keep 1: the score divided by the unpruned score on the same questions; its "
            "interval is a paired bootstrap, at least as wide as Newcombe's of the shares that lost and gained."
        )
    kinds = [kind.name for kind in first.unpruned.kinds[:-1]]
    score = ["right answers", "of keep 1"] if first.score else []
    numbers = [Column(name, number=True) for name in ("keep", "visual tokens", *kinds, *score, "same answer")]
    columns = [*([Column("artefact")] if several else []), *numbers]
    rows = [[*([name] if several else []), *_row(each)] for name, accuracy in named for each in accuracy.at]
    strong = frozenset(n for n, found in enumerate(first.at) if found.keep == first.own_keep and not several)
    table = Table(columns, rows, f"By budget, {first.questions:,} questions, 95 % intervals", strong)
    charts = [chart] if len(first.at) > 1 else []
    return View("Accuracy against budget", charts=charts, tables=[table], notes=[note])


def _asked(accuracy: Accuracy) -> str:
    return f"{accuracy.questions:,} questions of {accuracy.data}"


def _found(accuracy: Accuracy, found: AtKeep) -> str:
    if found.keep == 1:
        return "Keep 1 prunes nothing."
    agreement = f"{spread(found.agreement)} of its answers are the unpruned model's"
    if found.score is None or accuracy.unpruned.score is None:
        return f"Keep {found.keep:g}, on {_asked(accuracy)} without answers: {agreement}."
    kept = "" if found.relative is None else f"{spread(found.relative)} of the unpruned score, "
    scores = f"right answers {percent(found.score.mean)} after {percent(accuracy.unpruned.score.mean)}"
    return f"Keep {found.keep:g} has {kept}{scores} on {_asked(accuracy)}; {agreement}."


def _row(found: AtKeep) -> list[str]:
    by_kind = [percent((kind.score or kind.agreement).mean) for kind in found.kinds[:-1]]
    scores = [] if found.score is None else [spread(found.score), spread(found.relative) if found.relative else "-"]
    return [f"{found.keep:.2f}", f"{found.visual_tokens_kept:.0f}", *by_kind, *scores, percent(found.agreement.mean)]


def _line(name: str, accuracy: Accuracy, agreement: bool = False) -> Series:
    """Score, or agreement, against the share of visual tokens that stay; rising, as keep ratios do not."""
    points = []
    for found in reversed(accuracy.at):
        shown = found.agreement if agreement or found.score is None else found.score
        kept = found.visual_tokens_kept / accuracy.visual_tokens if accuracy.visual_tokens else found.keep
        points.append((kept, shown.mean, shown.low, shown.high))
    return Series(name, *zip(*points, strict=True))


def _example(example: Answered) -> Example:
    facts = [("right", " / ".join(example.right))] if example.right else []
    facts += [("keep 1", example.unpruned), (f"keep {example.keep:g}", example.pruned)]
    pictures = [
        Picture(_png(jpeg), f"{name}: dropped visual tokens are dimmed", name)
        for jpeg, name in zip(example.pictures, example.images, strict=True)
    ]
    title = f"{example.prompt} (No. {example.number})"
    return Example(title, [(name, text if text.strip() else "(nothing)") for name, text in facts], pictures)


def _png(jpeg: str) -> bytes:
    buffer = BytesIO()
    Image.open(BytesIO(base64.b64decode(jpeg))).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
