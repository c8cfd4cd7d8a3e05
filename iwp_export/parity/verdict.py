"""What a comparison must hold, and how it is shown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from iwp_export.parity.figures import LIMITS, OWN_GAP, PIXELS_LIMIT, Gap, Limits, Parity, StageFigures, limits_of
from iwp_export.view.figures import Gate, percent
from iwp_export.view.terminal import human_bytes
from iwp_export.view.view import Column, Table, View

PRECISION = "export again, or build with a higher precision"
FIRST_LAYER = "the first layer that differs is named; export again, or build with a higher precision"
REMEDIES = {
    "prompt": "export again: the processor's files or the chat template are not the checkpoint's",
    "pixels": "export again: the image processor's configuration is not the checkpoint's",
    "features": "export again; if it fails again in float16, values overflow: try float32 or bfloat16",
    "hidden states": FIRST_LAYER,
    "caches": FIRST_LAYER,
    "logits": PRECISION,
    "text": "export again: the tokenizer's files are not the checkpoint's",
}
NOTHING = "nothing was compared"
HOW_TO_READ = (
    "Both sides run along the reference's greedy answers, so that one wrong token does not hide what comes after it. A "
    "row is what one token has at one place: its feature, its state, its key or its value. Relative is the length of "
    "a row's difference over that of the reference's row, or of its median row where that is longer."
)


def gates(parity: Parity) -> list[Gate]:
    """One for each stage, over all keep ratios, by the limits of the figures' element type and depth."""
    limits, differences, found = limits_of(parity.dtype, parity.layers), parity.differences, []
    if files := parity.integrity:
        measured = "damaged" if files.flaw else f"{files.files} files, {human_bytes(files.bytes)}"
        remedy = "copy it again, or export it again"
        found.append(_gate("integrity", not files.flaw, measured, "every SHA-256", files.flaw, remedy))
    measured = f"{len(differences)} differences" if differences else "the reference's"
    remedy = "compare with what it was exported from, or export and build again"
    found.append(_gate("same checkpoint", not differences, measured, "the reference's", "; ".join(differences), remedy))
    every = [figures for keep in parity.keeps for figures in keep.stages]
    allowed = {"prompt": (0.0, 1.0), "pixels": (PIXELS_LIMIT, -1.0)}
    allowed["features"] = LIMITS[parity.dtype].rows, LIMITS[parity.dtype].cosine  # of a tower, whatever the decoder
    allowed |= dict.fromkeys(("hidden states", "caches"), (limits.rows, limits.cosine))
    allowed |= {"logits": (limits.logits, limits.cosine), "text": (0.0, 1.0)}
    for stage, (relative, cosine) in allowed.items():
        if stages := [figures for figures in every if figures.stage == stage]:
            found.append(_stage_gate(stage, stages, relative, cosine))
    kl, where = max(((each.kl, each.kl_where) for each in every if each.kl is not None), default=(math.inf, ""))
    measured = f"KL {kl:.1e} nats" if kl < math.inf else NOTHING
    found.append(_gate("next token", kl <= limits.kl, measured, f"{limits.kl:.2g} nats", where, PRECISION))
    return [*found, _kept_gate(parity, limits), _token_gate(parity)]


def _stage_gate(name: str, stages: Sequence[StageFigures], relative: float, cosine: float) -> Gate:
    exact = {"prompt": "the same tokens", "text": "the same text"}.get(name)
    limit = exact or f"{relative:.2g} of its length"
    limit += f", cosine {_cosine_text(cosine)}" if -1 < cosine < 1 else ""
    flaw = next((figures.flaw for figures in stages if figures.flaw), "")
    found = [(each.relative, each.where) for each in stages if each.relative is not None]
    rows = sum(figures.rows for figures in stages)
    if flaw or not rows:
        return _gate(name, False, "not comparable" if flaw else NOTHING, limit, flaw, REMEDIES[name])
    if exact:
        return Gate(name, True, f"the same in {rows}", limit)
    distance, where = max(found)
    least, turned = min((each.cosine, each.cosine_where) for each in stages if each.cosine is not None)
    measured = f"{distance:.1e}" + (f", cosine {_cosine_text(least)}" if cosine > -1 else "")
    where = turned if distance <= relative and least < cosine else where
    return _gate(name, distance <= relative and least >= cosine, measured, limit, where, REMEDIES[name])


def _cosine_text(cosine: float) -> str:
    """A cosine, or what it lacks of 1 where that is little."""
    return f"{cosine:.4f}" if 1 - cosine > 1e-4 else f"1 - {1 - cosine:.0e}"


def _kept_gate(parity: Parity, limits: Limits) -> Gate:
    kept = [keep.kept for keep in parity.keeps]
    differing, choices = sum(each.differing for each in kept), sum(each.choices for each in kept)
    pruned = sum(keep.kept.choices for keep in parity.keeps if keep.keep < 1)
    flaw = next((each.flaw for each in kept if each.flaw), "")
    gaps = [gap for each in kept for gap in each.gaps]
    wrong = _wrong(gaps, limits, pruned)
    shown = max(wrong or gaps, key=lambda gap: max(gap.gap or 0.0, gap.own_gap or 0.0), default=None)
    measured, limit = f"{differing} of {choices} differ" if pruned else f"{NOTHING} below keep 1", "the same"
    remedy = "check the version of the pruning op, and export again"
    remedy = remedy if pruned else "compare at a keep ratio at which tokens are dropped; record again at one"
    if shown is None:
        pass
    elif shown.gap is None:
        measured += "; whether by ties the reference cannot tell"
        remedy = "compare with the checkpoint, or with a recording of it"
    elif shown.own_gap is None or shown.scores is None:
        beyond = sum((gap.gap or 0.0) > limits.gap for gap in gaps)
        measured += f", {beyond} of them by more than {limits.gap:g}, at most {shown.gap:.1e}"
        limit += f", or {percent(limits.flips)} of {pruned} by more than {limits.gap:g}"
    else:
        measured += f", by {shown.own_gap:.1e} of its own scores, which are off by {shown.scores:.1e}"
        limit += f", or right within {OWN_GAP:g} by scores that are off by {limits.scores:g}"
    passed = pruned > 0 and not flaw and not wrong
    return _gate("kept tokens", passed, measured, limit, flaw or ("" if shown is None else shown.where), remedy)


def _wrong(gaps: Sequence[Gap], limits: Limits, pruned: int) -> list[Gap]:
    """The sets that are not right by what they were chosen from, or from other scores than the reference's.

    Where an artefact does not tell what it chose from, the reference's scores must do: by those a few sets may miss,
    since one early choice that flips changes all later penalties, but not most of `pruned`.
    """
    wrong, missed, unknown = [], [], False
    for gap in gaps:
        if gap.own_gap is None or gap.scores is None:
            unknown |= gap.gap is None
            missed += [gap] if gap.gap is None or gap.gap > limits.gap else []
        elif gap.own_gap > OWN_GAP or gap.scores > limits.scores:
            wrong.append(gap)
    return wrong + (missed if unknown or len(missed) > limits.flips * pruned else [])


def _token_gate(parity: Parity) -> Gate:
    tokens = [keep.tokens for keep in parity.keeps]
    compared, ties = sum(each.tokens for each in tokens), sum(each.ties for each in tokens)
    wrong = sum(each.differing for each in tokens) - ties
    measured = f"{wrong} of {compared} differ" + (f", and {ties} ties" if ties else "") if compared else NOTHING
    where = next((each.where for each in tokens if each.where), "")
    return _gate("greedy tokens", compared > 0 and not wrong, measured, "the reference's", where, PRECISION)


def _gate(name: str, passed: bool, measured: str, limit: str, where: str, remedy: str) -> Gate:
    return Gate(name, passed, measured, limit, where, "" if passed else remedy)


def view(parity: Parity) -> View:
    """The verdict, and every stage at every keep ratio."""
    failed = [gate for gate in gates(parity) if not gate.passed]
    keeps = ", ".join(f"{keep.keep:g}" for keep in parity.keeps)
    asked = f"({parity.samples} samples and {parity.probes} probes at keep {keeps}, {parity.new_tokens} tokens each)"
    sentences = [f"The artefact matches its reference within {parity.dtype} rounding {asked}."]
    if failed:
        first = failed[0]
        where = f" at {first.where}" if first.where else ""
        sentences = [
            f"The artefact does not match its reference: {', '.join(gate.name for gate in failed)} {asked}.",
            f"The first stage that fails is {first.name}: {first.measured}, allowed is {first.limit}{where}.",
        ]
    differing, followed = (sum(getattr(keep.kept, name) for keep in parity.keeps) for name in ("differing", "followed"))
    if followed < differing:
        sentences.append(f"What comes after {differing - followed} other choices of tokens was not compared.")
    facts = (("reference", parity.reference), ("limits for", parity.dtype))
    numbers = (Column(name, number=True) for name in ("rows", "relative", "cosine", "absolute", "KL, nats"))
    table = Table(("keep", "stage", *numbers, "worst place"), list(_rows(parity)), "Largest distances at each stage")
    return View("Parity", sentences, facts, tables=(table,), notes=(*parity.notes, HOW_TO_READ))


def _rows(parity: Parity) -> Iterator[Sequence[object]]:
    for figures in parity.keeps:
        keep, kept, tokens = f"{figures.keep:g}", figures.kept, figures.tokens
        for stage in figures.stages:
            cosine = None if stage.cosine is None else _cosine_text(stage.cosine)
            far, absolute, kl = (None if n is None else f"{n:.1e}" for n in (stage.relative, stage.absolute, stage.kl))
            yield keep, stage.stage, f"{stage.rows:,}", far, cosine, absolute, kl, stage.flaw or stage.where
        known = [gap.gap for gap in kept.gaps if gap.gap is not None]
        gap = f"gap {max(known):.1e}" if known else "gap unknown" if kept.gaps else None
        where = kept.flaw or next((each.where for each in kept.gaps), "")
        same = f"{kept.choices - kept.differing} of {kept.choices} the same"
        yield keep, "kept tokens", same, gap, None, None, None, where
        ties = f"{tokens.ties} ties" if tokens.ties else None
        same = f"{tokens.tokens - tokens.differing} of {tokens.tokens} the same"
        yield keep, "greedy tokens", same, ties, None, None, None, tokens.where
