"""What a calibration found, for people: what was chosen, how sure that is, when it means little, and what was tried."""

from __future__ import annotations

import shlex
from dataclasses import fields

import numpy as np

from iwp_export.accuracy.verdict import drop_gate
from iwp_export.bundle.recipe import CandidateFigures, Recipe
from iwp_export.calibrator.search import BLIND_SAMPLES, DRAWS, Found
from iwp_export.pruning.settings import PruningSettings
from iwp_export.view.figures import bootstrap_mean, interval, percent
from iwp_export.view.view import Axis, Chart, Column, Series, Table, View

LOST = 0.10
"""Share of changed answers beyond which a budget does not keep the answers."""
BLIND = 0.6
"""Share of answers that stay without the image beyond which the data say little about visual tokens."""
UNSURE = 0.7
"""Mean probability of the unpruned model's own tokens below which it guesses."""
WRONG = 0.6
"""Share of right answers of the unpruned model below which it does not know this kind of image."""
FEW = 24
"""Samples below which a choice is a guess."""
HOW_TO_READ = (
    "Further right is cheaper, further up keeps more answers; vertical lines are 95 % intervals, and those dropped "
    "early met fewer samples. The speed-up is counted in operations, not measured, and is of the prefill alone. "
    "Settings that do no better than the controls have found nothing."
)
EARLY = "dropped early"
MARKED = ("control", "the paper's", "chosen")
"""Kinds of candidates that a reader looks for."""


def verdict(found: Found) -> tuple[str, ...]:
    """The sentences: the choice, what it is compared with, then what speaks against relying on it."""
    drop = [_drop(found)] if found.search.budget.kind == "max_drop" else []
    return (_choice(found), *drop, *_compared(found), *_doubts(found))


def _choice(found: Found) -> str:
    chosen, search, kl = found.chosen, found.search, float(found.losses(found.chosen, "kl").mean())
    changed = [f"{name.replace('_', ' ')} {value}" for name, value in differences(chosen, search.default)]
    what = f"Chosen: {', '.join(changed)}, the rest as in the paper" if changed else "The paper's settings"
    keeps = search.budget.values if search.budget.kind == "keep" else (chosen.keep,)
    where, flattered = f"{search.count} samples", ", of the samples that chose it: others may show less"
    if found.held_out:
        where, flattered = f"{len(found.held_out)} samples that took no part in the choice", ""
    kept = found.kept(chosen)
    return (
        f"{what} (layer {chosen.layer}, keep {' and '.join(f'{keep:.3g}' for keep in keeps)}). On {where} "
        f"{percent(kept.mean)} of the answers stay the unpruned model's (95 % interval {percent(kept.low)} to "
        f"{percent(kept.high)}{flattered}); KL {kl:.2g} nats."
    )


def _drop(found: Found) -> str:
    """What `validate --max-drop` would say of the samples of the search."""
    drop = found.search.drop(found.chosen)
    gate = drop_gate(drop, "")
    if not drop.holds:
        return (
            f"Nothing that was tried stays within the allowed drop: allowed is {gate.limit}, and the nearest has "
            f"{gate.measured}. Keep every token, or allow more."
        )
    says = "passes" if drop.passed else f"may refuse the choice: {gate.remedy}"
    return (
        f"On the samples of the search, where {gate.limit} is allowed and {gate.measured} measured, "
        f"`validate --max-drop` {says}."
    )


def _compared(found: Found) -> list[str]:
    """The choice against the paper's settings and against random tokens, paired."""
    chosen, default = found.losses(found.chosen, "agreement"), found.search.default
    others = {f"Random tokens at the same place (mean of {DRAWS} draws)": found.random_losses("agreement")}
    if default != found.chosen:
        others = {"The paper's settings": found.losses(default, "agreement"), **others}
    lines = []
    for name, other in others.items():
        gain = bootstrap_mean(100 * (other - chosen))
        lines.append(
            f"{name} keep {percent(1 - float(other.mean()))}, the choice {gain.mean:+.1f} points (paired 95 % "
            f"interval {gain.low:+.1f} to {gain.high:+.1f})."
        )
    if bootstrap_mean(found.random_losses("kl") - found.losses(found.chosen, "kl")).low <= 0:
        lines.append(
            "Random does as well: the difference in KL is within chance. Here it matters how many tokens stay, not "
            "which."
        )
    return lines


def _doubts(found: Found) -> list[str]:
    search, lines = found.search, []
    lost = 1 - found.kept(found.chosen).mean
    if lost > LOST and search.budget.kind != "max_drop":
        lines.append(
            f"At this budget nothing keeps the answers: even the choice changes {percent(lost)} of them. Keep more "
            "tokens or prune later."
        )
    if search.count < FEW:
        lines.append(
            f"{search.count} samples are few: a choice from them may be far from the best, and 96 make that less "
            "likely."
        )
    samples = range(min(search.count, BLIND_SAMPLES))
    stays = 1 - float(search.measured.losses(search.blind, samples, "agreement").mean())
    if stays > BLIND:
        lines.append(
            f"Doubtful data: {percent(stays)} of the answers stay the same with one visual token left, so these "
            "samples say little about which tokens matter. Take images and questions of which the answer is in the "
            "image."
        )
    unpruned = search.measured.unpruned(search.count)
    right = float(np.mean([each.right for each in unpruned])) if search.measured.answers else 1.0
    confidence = float(np.mean([each.confidence for each in unpruned]))
    if right < WRONG or confidence < UNSURE:
        lines.append(
            f"Doubtful data: of its own answers the unpruned model "
            f"{f'has {percent(right)} right' if right < WRONG else 'is unsure'} (mean probability of their tokens "
            f"{confidence:.2f}), as with images of another kind than it was made for. Calibrate on images from where "
            "the model is used."
        )
    return lines


def differences(settings: PruningSettings, other: PruningSettings) -> list[tuple[str, str]]:
    """Name and value of the settings that differ, in the order of their declaration."""
    names = [each.name for each in fields(settings)]
    return [
        (name, _shown(getattr(settings, name))) for name in names if getattr(settings, name) != getattr(other, name)
    ]


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def kind_of(figures: CandidateFigures, recipe: Recipe) -> str:
    """`candidate`, `EARLY` or one of `MARKED`; the paper's settings, where they are chosen, are `chosen`."""
    if figures.chosen:
        return "chosen"
    if figures.samples < recipe.search.rungs[-1]:
        return EARLY
    return "the paper's" if figures.role == "default" else figures.role


def ranking(recipe: Recipe) -> list[CandidateFigures]:
    """All candidates, best first by the recipe's objective; equal ones in their order in the recipe.

    Those dropped in earlier rounds come last, the latest first: few samples may have flattered them.
    """
    objective = recipe.search.objective

    def rank(figures: CandidateFigures) -> tuple[int, float, float]:
        measure = getattr(figures, objective) or 0.0
        return -figures.samples, measure if objective == "kl" else -measure, figures.kl

    return sorted(recipe.candidates, key=rank)


def view(recipe: Recipe) -> list[View]:
    """The verdict with what was tried, which is for a terminal too; then what a page has beside it."""
    facts: list[tuple[str, object]] = []
    for title, part in (("model", recipe.model), ("data", recipe.data), ("search", recipe.search)):
        facts += [(f"{title}: {name.replace('_', ' ')}", _shown(value)) for name, value in vars(part).items()]
    return [
        View(
            f"Calibration of {recipe.model.name}", recipe.verdict, charts=[_chart(recipe)], tables=_candidates(recipe)
        ),
        View(
            "Where this comes from",
            facts=[*facts, *recipe.tools.items()],
            notes=[
                "Every figure holds for images and prompts like those tried here; others can turn the order around."
            ],
            command=f"iwp-export {shlex.quote(recipe.model.name)} --recipe RECIPE.json -o OUTPUT.bundle",
        ),
    ]


def _chart(recipe: Recipe) -> Chart:
    """Agreement of each candidate against the speed-up of its prefill."""
    series = []
    for kind in (EARLY, "candidate", *MARKED):  # those in front last
        own = [each for each in recipe.candidates if kind_of(each, recipe) == kind]
        x, y = tuple(each.prefill_speedup for each in own), tuple(each.agreement for each in own)
        low: tuple[float, ...] = ()
        high, labels = low, tuple[str, ...]()
        if kind in MARKED and own:
            low, high = zip(*(interval(each.agreement, each.samples) for each in own), strict=True)
            labels = tuple(each.settings.importance if kind == "control" else kind for each in own)
        series.append(Series(kind, x, y, low, high, labels))
    title = "agreement with the unpruned model"
    alt = f"{title.capitalize()} of each candidate against the speed-up; the table has the values"
    x_axis = Axis("speed-up of the prefill, by operations", "factor")
    return Chart("points", title.capitalize(), alt, series, x_axis, Axis(title, "percent"), caption=HOW_TO_READ)


def _candidates(recipe: Recipe) -> list[Table]:
    """Those that met every sample; on pages also the others."""
    paper = next((each.settings for each in recipe.candidates if each.role == "default"), PruningSettings())
    ranked, columns = ranking(recipe), [Column("differs from the paper's settings in")]
    titles = ("KL ± error", "agreement", "accuracy", "speed-up", "samples")
    columns += [Column(title, number=True) for title in titles]
    rows = [_row(figures, recipe, paper) for figures in ranked]
    last = sum(kind_of(figures, recipe) != EARLY for figures in ranked)
    caption = (
        f"What was tried, ranked by {recipe.search.objective}. KL says in nats how far the next token strays from "
        "the unpruned model's: 0 is no change."
    )
    strong = frozenset(number for number, figures in enumerate(ranked) if figures.chosen)
    rounds = " → ".join(map(str, recipe.search.rungs))
    dropped = f"{len(rows) - last} candidates dropped in earlier rounds; the better ones of each met more ({rounds})"
    others = [Table(columns, rows[last:], dropped, page_only=True)] if last < len(rows) else []
    return [Table(columns, rows[:last], caption, strong), *others]


def _row(figures: CandidateFigures, recipe: Recipe, paper: PruningSettings) -> list[object]:
    kind = kind_of(figures, recipe)
    says = [kind] if kind in MARKED else []
    says += [f"{name} {value}" for name, value in differences(figures.settings, paper)]
    return [
        ", ".join(says),
        f"{figures.kl:.4f} ± {figures.kl_error:.4f}",
        percent(figures.agreement),
        None if figures.accuracy is None else percent(figures.accuracy),
        f"{figures.prefill_speedup:.2f}x",
        figures.samples,
    ]
