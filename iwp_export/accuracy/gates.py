"""Whether pruning costs no more than is allowed, and whether there are questions enough to tell."""

from __future__ import annotations

from collections.abc import Sequence

from iwp_export.accuracy.figures import Accuracy, AtKeep
from iwp_export.accuracy.scoring import RULES
from iwp_export.errors import SettingsError
from iwp_export.view.figures import Gate, percent, samples_for, spread

MAX_DROP, MIN_AGREEMENT = "max-drop", "min-agreement"


def gates(accuracy: Accuracy, max_drop: float | None = None, min_agreement: float | None = None) -> list[Gate]:
    """Gates of the artefact's own keep ratio, or of every measured one if that was not measured.

    Args:
        accuracy: what was measured.
        max_drop: share of the unpruned score that may be lost, in (0, 1). The gate passes only where the lower end of
            the interval of the relative score is at or above 1 - max_drop: where it is shown that no more is lost.
        min_agreement: share of answers that must be the unpruned model's, in (0, 1). Here too the interval's lower end
            counts.

    Raises:
        SettingsError: a limit is out of its range.
    """
    check_limits(max_drop, min_agreement)
    made = []
    for found in accuracy.shipped:
        if max_drop is not None:
            made.append(_drop(accuracy, found, max_drop))
        if min_agreement is not None:
            made.append(_agreement(accuracy, found, min_agreement))
    return made


def check_limits(max_drop: float | None, min_agreement: float | None) -> None:
    """Refuse limits that mean nothing, before anything is measured.

    Raises:
        SettingsError: one is not between 0 and 1.
    """
    for name, value in (("max_drop", max_drop), ("min_agreement", min_agreement)):
        if value is not None and not 0 < value < 1:
            raise SettingsError(
                f"{name} must be a share above 0 and below 1, got {value:g}: no number of questions shows that a share "
                "is exactly 0 or 1",
                options=(name,),
            )


def warnings(accuracy: Accuracy, found: Sequence[Gate]) -> list[str]:
    """What the gates that were made of it do not show."""
    keeps = [each.keep for each in accuracy.shipped]
    if not found or accuracy.own_keep in keeps:
        return []
    shown = ", ".join(f"{keep:g}" for keep in keeps)
    return [f"The gates are of keep {shown}; the artefact's own keep {accuracy.own_keep:g} was not measured."]


def _unpruned(name: str, accuracy: Accuracy, limit: str) -> Gate:
    """The gate where keep 1 alone was measured: it holds of an artefact that prunes nothing, and of no other."""
    holds = accuracy.own_keep == 1
    remedy = "" if holds else f"measure at the artefact's own keep ratio, {accuracy.own_keep:g}"
    return Gate(name, holds, "nothing is pruned" if holds else "no pruned answers", limit, "keep 1", remedy)


def _drop(accuracy: Accuracy, found: AtKeep, allowed: float) -> Gate:
    limit = f"a drop of at most {percent(allowed)} of the unpruned score"
    where = f"keep {found.keep:g}"
    if found.keep == 1:
        return _unpruned(MAX_DROP, accuracy, limit)
    if found.relative is None:
        reason = "the unpruned model scores 0" if accuracy.rule else "the questions have no answers"
        remedy = (
            "look at the answers: another scoring rule, or questions that the model can answer"
            if accuracy.rule
            else f"give the questions answers, or take the gate {MIN_AGREEMENT}, which needs none"
        )
        return Gate(MAX_DROP, False, reason, limit, where, remedy)
    measured = f"{spread(found.relative)} of it"
    if found.relative.low >= 1 - allowed:
        return Gate(MAX_DROP, True, measured, limit, where)
    needed = drop_needs(accuracy, allowed)
    if found.relative.high < 1 - allowed:
        remedy = "keep more visual tokens, prune later, or calibrate: the drop is shown to be larger"
    elif accuracy.questions < needed:
        remedy = _too_few(accuracy, needed)
    elif found.relative.mean >= 1 - allowed:
        remedy = "the drop may be small enough, but these questions do not show it: ask more, or allow more"
    else:
        remedy = "keep more visual tokens, prune later, or calibrate"
    return Gate(MAX_DROP, False, measured, limit, where, remedy)


def _agreement(accuracy: Accuracy, found: AtKeep, least: float) -> Gate:
    limit, where = f"at least {percent(least)} of the answers", f"keep {found.keep:g}"
    if found.keep == 1:
        return _unpruned(MIN_AGREEMENT, accuracy, limit)
    measured = f"{spread(found.agreement)} are the unpruned model's"
    if found.agreement.low >= least:
        return Gate(MIN_AGREEMENT, True, measured, limit, where)
    needed = samples_for(least)
    if found.agreement.mean < least:
        remedy = "keep more visual tokens, prune later, or calibrate"
    elif accuracy.questions < needed:
        remedy = _too_few(accuracy, needed)
    else:
        remedy = "the agreement may be enough, but these questions do not show it: ask more, or allow less"
    return Gate(MIN_AGREEMENT, False, measured, limit, where, remedy)


def drop_needs(accuracy: Accuracy, max_drop: float) -> int:
    """Questions without which the gate `max_drop` cannot pass, even if pruning changes no answer.

    Exact for a mean of scores. For F1 it is counted in answers to what is a yes, of which some may be lost unseen.
    """
    base = accuracy.unpruned.score
    if base is None or base.mean == 0:
        return 0
    if not RULES[accuracy.rule].f1:
        return samples_for(1 - max_drop * base.mean)
    # F1 = 2a / (2a + b), of which 2(a - r) / (2(a - r) + b + r) may be left; solved for r, the share lost unseen.
    right = sum(score * yes for score, yes in zip(accuracy.unpruned.scores, accuracy.yes, strict=True))
    a, b = right / accuracy.questions, 1 - sum(accuracy.unpruned.scores) / accuracy.questions
    left = base.mean * (1 - max_drop)
    unseen = (2 * a * (1 - left) - left * b) / (2 - left)
    return samples_for(1 - unseen)


def _too_few(accuracy: Accuracy, needed: int) -> str:
    return (
        f"{accuracy.questions:,} questions cannot show it, even if no answer changes: at least {needed:,} are needed; "
        "ask more, or allow more"
    )
