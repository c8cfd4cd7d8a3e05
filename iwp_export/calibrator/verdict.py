"""What a calibration found, in sentences: what was chosen, how sure that is, and when it means little."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iwp_export.bundle.recipe import Objective
from iwp_export.calibrator.candidates import Budget
from iwp_export.calibrator.figures import differences
from iwp_export.calibrator.measurements import Measurements
from iwp_export.calibrator.search import NEGLIGIBLE_KL, Found
from iwp_export.pruning.settings import PruningSettings
from iwp_export.view.figures import bootstrap_mean, interval

LOST = 0.10
"""Share of changed answers beyond which a budget does not keep the answers."""
BLIND = 0.6
"""Share of answers that stay without the image beyond which the data say little about visual tokens."""
UNSURE = 0.7
"""Mean probability of the unpruned model's own tokens below which it guesses."""
WRONG = 0.6
"""Share of right answers of the unpruned model below which it does not know this kind of image."""
BLIND_SAMPLES = 24
"""Samples on which that is measured, at most."""
FEW = 24
"""Samples below which a choice is a guess."""


@dataclass(frozen=True)
class Evidence:
    """What a verdict is made of.

    Attributes:
        measured: all scores.
        found: the search's outcome.
        default: the paper's settings at the budget.
        budget, objective: what was searched for.
        count: samples of the last rung.
        blind: a setting that leaves one visual token, measured on the first `BLIND_SAMPLES` of them.
    """

    measured: Measurements
    found: Found
    default: PruningSettings
    budget: Budget
    objective: Objective
    count: int
    blind: PruningSettings

    def changed(self, settings: PruningSettings) -> np.ndarray:
        """0 or 1 a sample: whether the answer changed; a mean where there are several keep ratios."""
        return self.measured.losses(settings, self.count, "agreement")

    def kl(self, settings: PruningSettings) -> np.ndarray:
        return self.measured.losses(settings, self.count, "kl")


def verdict(evidence: Evidence) -> tuple[str, ...]:
    """The sentences, the choice first, then what speaks against relying on it."""
    return tuple(
        filter(
            None,
            (
                _choice(evidence),
                _against_the_paper(evidence),
                _against_random(evidence),
                _lost(evidence),
                _few(evidence),
                _blind(evidence),
                _unsure(evidence),
                _undecided(evidence),
            ),
        )
    )


def _choice(evidence: Evidence) -> str:
    chosen = evidence.found.chosen
    words = [f"{row.name.replace('_', ' ')} {row.value}" for row in differences(chosen, evidence.default)]
    what = "The paper's settings"
    if chosen != evidence.default:
        what = f"Chosen: {', '.join(words)}, the rest as in the paper"
    kept = 1 - float(evidence.changed(chosen).mean())
    low, high = interval(kept, evidence.count)  # which, unlike a bootstrap, has a width where no answer changed
    keeps = evidence.budget.values if evidence.budget.kind == "keep" else (chosen.keep,)
    place = f"layer {chosen.layer}, keep {' and '.join(f'{keep:.3g}' for keep in keeps)}"
    kl = float(evidence.kl(chosen).mean())
    return (
        f"{what} ({place}). On {evidence.count} samples {_percent(kept)} of the answers stay the unpruned model's "
        f"(95 % interval {_percent(low)} to {_percent(high)}); KL {two_digits(kl)} nats."
    )


def _against_the_paper(evidence: Evidence) -> str:
    chosen, default = evidence.found.chosen, evidence.default
    if chosen == default and evidence.budget.kind == "max_drop":
        return "Nothing that was tried and is faster stays within the drop." if evidence.found.feasible else ""
    if chosen == default:
        more = f" and {NEGLIGIBLE_KL:g} nats" if evidence.objective == "kl" else ""
        return f"Nothing that was tried is better than the paper's settings by more than a standard error{more}."
    return f"The paper's settings keep {_compared(evidence, default)}."


def _against_random(evidence: Evidence) -> str:
    chosen = evidence.found.chosen
    for control in evidence.found.controls:
        if (control.layer, control.keep, control.importance) == (chosen.layer, chosen.keep, "random"):
            difference = bootstrap_mean(evidence.kl(control) - evidence.kl(chosen))
            if difference.low <= 0:
                return (
                    f"Random does as well: random tokens at the same place keep {_compared(evidence, control)}, and "
                    "the difference in KL is within chance. Here it matters how many tokens stay, not which."
                )
            return f"Random tokens at the same place keep {_compared(evidence, control)}."
    return ""


def _compared(evidence: Evidence, other: PruningSettings) -> str:
    """Another setting's share of kept answers, and its paired distance to the choice's."""
    kept = 1 - float(evidence.changed(other).mean())
    gain = bootstrap_mean(evidence.changed(other) - evidence.changed(evidence.found.chosen))
    return (
        f"{_percent(kept)}, the choice {100 * gain.mean:+.0f} points (paired 95 % interval {100 * gain.low:+.0f} to "
        f"{100 * gain.high:+.0f})"
    )


def _lost(evidence: Evidence) -> str:
    lost = float(evidence.changed(evidence.found.chosen).mean())
    if evidence.budget.kind == "max_drop" and not evidence.found.feasible:
        return (
            f"Nothing that was tried stays within the allowed drop: the nearest changes {_percent(lost)} of the "
            "answers. Keep every token, or allow more."
        )
    if lost > LOST and evidence.budget.kind != "max_drop":
        return (
            f"At this budget nothing keeps the answers: even the choice changes {_percent(lost)} of them. Keep more "
            "tokens or prune later."
        )
    return ""


def _few(evidence: Evidence) -> str:
    if evidence.count >= FEW:
        return ""
    return (
        f"{evidence.count} samples are few: a choice from them may be far from the best, and 96 make that less likely."
    )


def _blind(evidence: Evidence) -> str:
    count = min(evidence.count, BLIND_SAMPLES)
    stays = 1 - float(evidence.measured.losses(evidence.blind, count, "agreement").mean())
    if stays <= BLIND:
        return ""
    return (
        f"Doubtful data: {_percent(stays)} of the answers stay the same with one visual token left, so these samples "
        "say little about which tokens matter. Take images and questions of which the answer is in the image."
    )


def _unsure(evidence: Evidence) -> str:
    unpruned = evidence.measured.unpruned(evidence.count)
    rights = [each.right for each in unpruned if each.right is not None]
    if rights and np.mean(rights) < WRONG:
        return (
            f"Doubtful data: the unpruned model answers {_percent(float(np.mean(rights)))} rightly, so it does not "
            "know this kind of image. Calibrate on images from where the model is used."
        )
    confidence = float(np.mean([each.confidence for each in unpruned]))
    if confidence >= UNSURE:
        return ""
    return (
        "Doubtful data: the unpruned model is unsure of its own answers (mean probability of its tokens "
        f"{confidence:.2f}), as with images of another kind than it was made for. Calibrate on images from where the "
        "model is used."
    )


def _undecided(evidence: Evidence) -> str:
    """The best and the worst of what met every sample are one within chance."""
    met = [s for s in evidence.found.tried if evidence.measured.met(s) >= evidence.count]
    if len(met) < 2:
        return ""
    ranked = sorted(met, key=lambda settings: float(evidence.kl(settings).mean()))
    difference = bootstrap_mean(evidence.kl(ranked[-1]) - evidence.kl(ranked[0]))
    if difference.low > 0:
        return ""
    return "The settings that met every sample do not differ beyond chance: these data do not tell them apart."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def two_digits(value: float) -> str:
    """A number with two significant digits, and no exponent."""
    return np.format_float_positional(value, precision=2, unique=False, fractional=False, trim="-")
