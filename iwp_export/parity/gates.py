"""What a comparison must hold."""

from __future__ import annotations

from collections.abc import Iterator

from iwp_export.parity.compare import CACHES, FEATURES, HIDDEN, LOGITS, PIXELS, PROMPT
from iwp_export.parity.figures import Gap, Integrity, Parity, StageFigures
from iwp_export.parity.limits import LIMITS, OWN_GAP, Limits
from iwp_export.parity.limits import PIXELS as PIXELS_LIMIT
from iwp_export.tables import human_bytes
from iwp_export.view.figures import Gate

REMEDIES = {
    PROMPT: "export again: the processor's files or the chat template are not the checkpoint's",
    PIXELS: "export again: the image processor's configuration is not the checkpoint's",
    FEATURES: "export again; if it fails again in float16, values overflow: try float32 or bfloat16",
    HIDDEN: "the first layer that differs is named; export again, or build with a higher precision",
    CACHES: "the first layer that differs is named; export again, or build with a higher precision",
    LOGITS: "export again, or build with a higher precision",
}


def gates(parity: Parity, limits: Limits | None = None) -> list[Gate]:
    """One for each stage, over all keep ratios, by the limits of the figures' element type unless others are given."""
    return list(_gates(parity, LIMITS[parity.dtype] if limits is None else limits))


def integrity_gate(found: Integrity) -> Gate:
    """The gate of an artefact's files alone: where it fails, nothing else can be asked."""
    measured = "damaged" if found.flaw else f"{found.files} files, {human_bytes(found.bytes)}"
    return _gate(
        "integrity", not found.flaw, measured, "every SHA-256", found.flaw, "copy it again, or export it again"
    )


def _gates(parity: Parity, limits: Limits) -> Iterator[Gate]:
    if parity.integrity is not None:
        yield integrity_gate(parity.integrity)
    yield _gate(
        "same checkpoint",
        not parity.differences,
        f"{len(parity.differences)} differences" if parity.differences else "the reference's",
        "the reference's",
        "; ".join(parity.differences),
        "compare with what it was exported from, or export and build again",
    )
    for stage, relative, cosine in (
        (PROMPT, 0.0, 1.0),
        (PIXELS, PIXELS_LIMIT, -1.0),
        (FEATURES, limits.rows, limits.cosine),
        (HIDDEN, limits.rows, limits.cosine),
        (CACHES, limits.rows, limits.cosine),
        (LOGITS, limits.logits, limits.cosine),
    ):
        stages = [figures for keep in parity.keeps for figures in keep.stages if figures.stage == stage]
        if stages:
            yield _stage_gate(stage, stages, relative, cosine)
    yield _kl_gate(parity, limits)
    yield _kept_gate(parity, limits)
    yield _token_gate(parity)


def _stage_gate(name: str, stages: list[StageFigures], relative: float, cosine: float) -> Gate:
    exact, flaw = name == PROMPT, next((figures.flaw for figures in stages if figures.flaw), "")
    limit = "the same tokens" if exact else f"{relative:g} of its length"
    if cosine > -1 and not exact:
        limit += f", cosine {cosine_text(cosine)}"
    found = [figures for figures in stages if figures.relative is not None]
    if flaw or not found:
        measured = "not comparable" if flaw else "nothing was compared"
        return _gate(name, False, measured, limit, flaw, REMEDIES[name])
    if exact:
        return _gate(name, True, f"the same in {found[0].rows}", limit, "", "")
    far = max(found, key=lambda figures: figures.relative or 0.0)
    turned = min(found, key=lambda figures: 1.0 if figures.cosine is None else figures.cosine)
    distance, least = far.relative or 0.0, 1.0 if turned.cosine is None else turned.cosine
    measured = f"{distance:.1e}" + (f", cosine {cosine_text(least)}" if cosine > -1 else "")
    where = turned.cosine_where if distance <= relative and least < cosine else far.where
    return _gate(name, distance <= relative and least >= cosine, measured, limit, where, REMEDIES[name])


def cosine_text(cosine: float) -> str:
    """A cosine, or what it lacks of 1 where that is little."""
    return f"{cosine:.4f}" if 1 - cosine > 1e-4 else f"1 - {1 - cosine:.0e}"


def _kl_gate(parity: Parity, limits: Limits) -> Gate:
    found = [stage for keep in parity.keeps for stage in keep.stages if stage.kl is not None]
    worst = max(found, key=lambda stage: stage.kl or 0.0, default=None)
    limit = f"{limits.kl:g} nats"
    if worst is None:
        return _gate("next token", False, "nothing was compared", limit, "", REMEDIES[LOGITS])
    kl = worst.kl or 0.0
    return _gate("next token", kl <= limits.kl, f"KL {kl:.1e} nats", limit, worst.kl_where, REMEDIES[LOGITS])


def _kept_gate(parity: Parity, limits: Limits) -> Gate:
    kept = [keep.kept for keep in parity.keeps]
    differing, choices = sum(each.differing for each in kept), sum(each.choices for each in kept)
    pruned = sum(keep.kept.choices for keep in parity.keeps if keep.keep < 1)
    flaw = next((each.flaw for each in kept if each.flaw), "")
    gaps = [gap for each in kept for gap in each.gaps]
    wrong = _wrong(gaps, limits, pruned)
    shown = max(wrong or gaps, key=lambda gap: max(gap.gap or 0.0, gap.own_gap or 0.0), default=None)
    measured, limit = f"{differing} of {choices} differ" if choices else "nothing was compared", "the same"
    remedy = "check the version of the pruning op, and export again"
    if shown is None:
        pass
    elif shown.gap is None:
        measured += "; whether by ties the reference cannot tell"
        remedy = "compare with the checkpoint, or with a recording of it"
    elif shown.own_gap is None or shown.scores is None:
        beyond = sum((gap.gap or 0.0) > limits.gap for gap in gaps)
        measured += f", {beyond} of them by more than {limits.gap:g}, at most {shown.gap:.1e}"
        limit += f", or {100 * limits.flips:g} % of {pruned} by more than {limits.gap:g}"
    else:
        measured += f", by {shown.own_gap:.1e} of its own scores, which are off by {shown.scores:.1e}"
        limit += f", or right within {OWN_GAP:g} by scores that are off by {limits.scores:g}"
    passed = choices > 0 and not flaw and not wrong
    return _gate("kept tokens", passed, measured, limit, flaw or ("" if shown is None else shown.where), remedy)


def _wrong(gaps: list[Gap], limits: Limits, pruned: int) -> list[Gap]:
    """The sets that are not right by what they were chosen from, or from other scores than the reference's.

    Where an artefact does not tell what it chose from, the reference's scores must do: by those a few sets may miss,
    since one early choice that flips changes all later penalties, but not most of `pruned`.
    """
    blind = [gap for gap in gaps if gap.own_gap is None or gap.scores is None]
    missed = [gap for gap in blind if gap.gap is None or gap.gap > limits.gap]
    unknown = any(gap.gap is None for gap in blind)
    wrong = [gap for gap in gaps if gap not in blind and not _right(gap, limits)]
    return wrong + (missed if unknown or len(missed) > limits.flips * pruned else [])


def _right(gap: Gap, limits: Limits) -> bool:
    return (gap.own_gap or 0.0) <= OWN_GAP and (gap.scores or 0.0) <= limits.scores


def _token_gate(parity: Parity) -> Gate:
    tokens = [keep.tokens for keep in parity.keeps]
    compared, differing, ties = (
        sum(getattr(each, name) for each in tokens) for name in ("tokens", "differing", "ties")
    )
    measured = f"{differing - ties} of {compared} differ" + (f", and {ties} ties" if ties else "")
    where = next((each.where for each in tokens if each.where), "")
    passed = compared > 0 and differing == ties
    return _gate(
        "greedy tokens",
        passed,
        measured if compared else "nothing was compared",
        "the reference's",
        where,
        REMEDIES[LOGITS],
    )


def _gate(name: str, passed: bool, measured: str, limit: str, where: str, remedy: str) -> Gate:
    return Gate(name, passed, measured, limit, where, "" if passed else remedy)
