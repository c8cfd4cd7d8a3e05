"""What a calibration found, for people: what was chosen, how sure that is, when it means little, and what was tried."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import fields
from io import BytesIO

import numpy as np
from PIL import Image

from iwp_export.accuracy.scoring import Drop
from iwp_export.accuracy.verdict import drop_gate
from iwp_export.bundle.recipe import CandidateFigures, Recipe
from iwp_export.calibrator.search import BLIND_SAMPLES, NEGLIGIBLE_KL, Found
from iwp_export.pruning.settings import PruningSettings
from iwp_export.scorer import Prepared
from iwp_export.view.figures import bootstrap_mean, interval, percent, spread
from iwp_export.view.view import Axis, Chart, Column, Example, Picture, Series, Table, View

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
PICTURE_SIDE = 480
"""Pixels of a picture's longer side: two beside each other have this on a wide screen, and six make a file of 2 MB."""
HOW_TO_READ = (
    "Further right is cheaper, further up keeps more answers; vertical lines are 95 % intervals, and those dropped "
    "early met fewer samples. The speed-up is counted in operations, not measured, and is of the prefill alone. "
    "Settings that do no better than the controls have found nothing."
)
OBJECTIVES = {
    "kl": "divergence (KL) of the next token from the unpruned model's",
    "agreement": "agreement of answers with the unpruned model's",
    "accuracy": "share of right answers",
}


def verdict(found: Found) -> tuple[str, ...]:
    """The sentences, the choice first, then what speaks against relying on it."""
    made = (_choice, _drop, _against_the_paper, _against_random, _lost, _few, _blind, _unsure, _undecided)
    return tuple(filter(None, (sentence(found) for sentence in made)))


def _choice(found: Found) -> str:
    chosen, search = found.chosen, found.search
    what = "The paper's settings"
    if chosen != search.default:
        words = [f"{name.replace('_', ' ')} {value}" for name, value, _ in differences(chosen, search.default)]
        what = f"Chosen: {', '.join(words)}, the rest as in the paper"
    keeps = search.budget.values if search.budget.kind == "keep" else (chosen.keep,)
    place = f"layer {chosen.layer}, keep {' and '.join(f'{keep:.3g}' for keep in keeps)}"
    samples = f"{len(found.held_out) or found.search.count} samples"
    samples += " that took no part in the choice" if found.held_out else ""
    flattered = "" if found.held_out else ", of the samples that chose it: others may show less"
    kept = found.kept(chosen)
    low, high = interval(kept, len(found.losses(chosen, "kl")))  # a bootstrap's has no width where none changed
    return (
        f"{what} ({place}). On {samples} {percent(kept)} of the answers stay the unpruned model's (95 % interval "
        f"{percent(low)} to {percent(high)}{flattered}); KL {two_digits(float(found.losses(chosen, 'kl').mean()))} "
        "nats."
    )


def _drop(found: Found) -> str:
    """Whether `validate --max-drop` passes on the samples of the search."""
    if found.search.budget.kind != "max_drop" or not found.feasible:
        return ""
    drop = found.search.drop(found.chosen)
    if drop.passed:
        return f"On the samples of the search {_left(drop)}: `validate --max-drop` passes on them."
    remedy = drop_gate(drop, "").remedy
    return f"On the samples of the search {_left(drop)}; `validate --max-drop` may refuse it on them: {remedy}."


def _left(drop: Drop) -> str:
    """What pruning leaves of the score."""
    if drop.relative is None:
        return "the unpruned model scores 0"
    of = "of the unpruned score is left" if drop.answered else "of the answers stay"
    return f"{spread(drop.relative)} {of}"


def _against_the_paper(found: Found) -> str:
    search = found.search
    if found.chosen != search.default:
        return f"The paper's settings keep {_compared(found, search.default)}."
    if search.budget.kind == "max_drop":
        return "Nothing that was tried and is faster stays within the drop." if found.feasible else ""
    more = f" and {NEGLIGIBLE_KL:g} nats" if search.objective == "kl" else ""
    return f"Nothing that was tried is better than the paper's settings by more than a standard error{more}."


def _against_random(found: Found) -> str:
    random = found.controls[0]
    difference = bootstrap_mean(found.losses(random, "kl") - found.losses(found.chosen, "kl"))
    if difference.low <= 0:
        return (
            f"Random does as well: random tokens at the same place keep {_compared(found, random)}, and "
            "the difference in KL is within chance. Here it matters how many tokens stay, not which."
        )
    return f"Random tokens at the same place keep {_compared(found, random)}."


def _compared(found: Found, other: PruningSettings) -> str:
    """Another setting's share of kept answers, and its paired distance to the choice's."""
    changed, chosen = (found.losses(each, "agreement") for each in (other, found.chosen))
    gain = bootstrap_mean(100 * (changed - chosen))
    return (
        f"{percent(found.kept(other))}, the choice {gain.mean:+.1f} points (paired 95 % interval {gain.low:+.1f} to "
        f"{gain.high:+.1f})"
    )


def _lost(found: Found) -> str:
    lost, by_drop = 1 - found.kept(found.chosen), found.search.budget.kind == "max_drop"
    if by_drop and not found.feasible:
        left = _left(found.search.drop(found.chosen))
        return (
            f"Nothing that was tried stays within the allowed drop: with the nearest {left}. Keep every token, or "
            "allow more."
        )
    if lost > LOST and not by_drop:
        return (
            f"At this budget nothing keeps the answers: even the choice changes {percent(lost)} of them. Keep more "
            "tokens or prune later."
        )
    return ""


def _few(found: Found) -> str:
    if found.search.count >= FEW:
        return ""
    few = f"{found.search.count} samples are few"
    return f"{few}: a choice from them may be far from the best, and 96 make that less likely."


def _blind(found: Found) -> str:
    samples = range(min(found.search.count, BLIND_SAMPLES))
    stays = 1 - float(found.search.measured.losses(found.search.blind, samples, "agreement").mean())
    if stays <= BLIND:
        return ""
    return (
        f"Doubtful data: {percent(stays)} of the answers stay the same with one visual token left, so these samples "
        "say little about which tokens matter. Take images and questions of which the answer is in the image."
    )


def _unsure(found: Found) -> str:
    unpruned = found.search.measured.unpruned(found.search.count)
    rights = [each.right for each in unpruned if each.right is not None]
    if rights and np.mean(rights) < WRONG:
        return (
            f"Doubtful data: the unpruned model answers {percent(float(np.mean(rights)))} rightly, so it does not "
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


def _undecided(found: Found) -> str:
    """The best and the worst of what met every sample are one within chance."""
    measured, samples = found.search.measured, range(found.search.count)
    met = [measured.losses(s, samples, "kl") for s in found.tried if measured.met(s) >= found.search.count]
    ranked = sorted(met, key=lambda losses: float(losses.mean()))
    if len(met) < 2 or bootstrap_mean(ranked[-1] - ranked[0]).low > 0:
        return ""
    return "The settings that met every sample do not differ beyond chance: these data do not tell them apart."


def two_digits(value: float) -> str:
    """A number with two significant digits, and no exponent."""
    return np.format_float_positional(value, precision=2, unique=False, fractional=False, trim="-")


def differences(settings: PruningSettings, other: PruningSettings) -> list[tuple[str, str, str]]:
    """Name, value and the other's value of the settings that differ, in the order of their declaration."""
    pairs = [(each.name, getattr(settings, each.name), getattr(other, each.name)) for each in fields(settings)]
    return [(name, _shown(value), _shown(its)) for name, value, its in pairs if value != its]


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


KINDS = ("dropped early", "candidate", "control", "the paper's", "chosen")
"""How a candidate is marked, those in front last."""


def kind_of(figures: CandidateFigures, recipe: Recipe) -> str:
    """One of `KINDS`; the paper's settings, where they are chosen, are `chosen`."""
    if figures.chosen:
        return "chosen"
    if figures.role == "candidate" and figures.samples < recipe.search.rungs[-1]:
        return "dropped early"
    return "the paper's" if figures.role == "default" else figures.role


def ranking(recipe: Recipe) -> list[CandidateFigures]:
    """All candidates, best first by the recipe's objective; equal ones in their order in the recipe.

    Those dropped in earlier rounds come last, the latest first: few samples may have flattered them.
    """
    objective = recipe.search.objective

    def rank(figures: CandidateFigures) -> tuple[int, float, float]:
        samples = figures.samples if kind_of(figures, recipe) == "dropped early" else recipe.search.rungs[-1]
        measure = getattr(figures, objective) or 0.0
        return -samples, measure if objective == "kl" else -measure, figures.kl

    return sorted(recipe.candidates, key=rank)


def view(recipe: Recipe, examples: Sequence[Example] = ()) -> list[View]:
    """The verdict with what was tried, which is for a terminal too; then what a page has beside it.

    Args:
        recipe: the calibration's result.
        examples: samples before and after, see `example`.
    """
    tried = [figures.settings for figures in recipe.candidates if figures.role == "default"]
    paper = tried[0] if tried else PruningSettings()
    changed = [name for name, _, _ in differences(recipe.settings, paper)]
    rows = [(name, _shown(value), _shown(getattr(paper, name))) for name, value in vars(recipe.settings).items()]
    strong = frozenset(number for number, (name, _, _) in enumerate(rows) if name in changed)
    views = [
        View(
            f"Calibration of {recipe.model.name}",
            recipe.verdict,
            charts=[
                *_chart(recipe, "agreement", "agreement with the unpruned model", HOW_TO_READ),
                *_chart(recipe, "accuracy", "right answers"),
            ],
            tables=_candidates(recipe, paper),
        ),
        View(
            "The chosen settings",
            [f"They differ from the paper's in {', '.join(changed)}." if changed else "They are the paper's."],
            tables=[Table(("setting", "chosen", "the paper's"), rows, "All settings", strong, page_only=True)],
            command=f"iwp-export {shlex.quote(recipe.model.name)} --recipe RECIPE.json -o OUTPUT.bundle",
        ),
    ]
    if examples:
        note = () if changed else ("The chosen settings are the paper's, so both are the same.",)
        views.append(View("Kept tokens with the paper's settings and with the chosen ones", note, examples=examples))
    return [*views, _provenance(recipe)]


def _chart(recipe: Recipe, measure: str, title: str, caption: str = "") -> list[Chart]:
    """A measure of each candidate, if it is known, against the speed-up of its prefill."""
    known = [each for each in recipe.candidates if getattr(each, measure) is not None]
    series = []
    for kind in KINDS:  # an empty one too, so that both charts have the same colours
        own = [each for each in known if kind_of(each, recipe) == kind]
        x, y = tuple(each.prefill_speedup for each in own), tuple(getattr(each, measure) for each in own)
        if kind not in KINDS[2:] or not own:
            series.append(Series(kind, x, y))
            continue
        low, high = zip(*(interval(share, each.samples) for each, share in zip(own, y, strict=True)), strict=True)
        labels = tuple(each.settings.importance if kind == "control" else kind for each in own)
        series.append(Series(kind, x, y, low, high, labels))
    alt = f"{title.capitalize()} of each candidate against the speed-up; the table has the values"
    x_axis = Axis("speed-up of the prefill, by operations", "factor")
    chart = Chart("points", title.capitalize(), alt, series, x_axis, Axis(title, "percent"), caption=caption)
    return [chart] if known else []


def _candidates(recipe: Recipe, paper: PruningSettings) -> list[Table]:
    ranked = ranking(recipe)
    last = [figures for figures in ranked if kind_of(figures, recipe) != "dropped early"]
    dropped = ranked[len(last) :]
    titles = ("KL ± error", "agreement", "accuracy", "speed-up", "samples")
    columns: list[Column | str] = ["differs from the paper's settings in"]
    columns += [Column(title, number=True) for title in titles]
    caption = (
        f"What was tried, ranked by {OBJECTIVES[recipe.search.objective]}. KL says in nats how far the next token "
        "strays from the unpruned model's: 0 is no change."
    )
    strong = frozenset(number for number, figures in enumerate(last) if figures.chosen)
    tables = [Table(columns, [_row(each, recipe, paper) for each in last], caption, strong)]
    if dropped:
        rounds = " → ".join(map(str, recipe.search.rungs))
        caption = f"{len(dropped)} candidates dropped in earlier rounds; the better ones of each met more ({rounds})"
        tables.append(Table(columns, [_row(each, recipe, paper) for each in dropped], caption, page_only=True))
    return tables


def _row(figures: CandidateFigures, recipe: Recipe, paper: PruningSettings) -> list[object]:
    kind = kind_of(figures, recipe)
    says = [kind] if kind in KINDS[2:] else []
    says += [f"{name} {value}" for name, value, _ in differences(figures.settings, paper)]
    return [
        ", ".join(says),
        f"{figures.kl:.4f} ± {figures.kl_error:.4f}",
        percent(figures.agreement),
        None if figures.accuracy is None else percent(figures.accuracy),
        f"{figures.prefill_speedup:.2f}x",
        figures.samples,
    ]


def _provenance(recipe: Recipe) -> View:
    facts: list[tuple[str, object]] = []
    for title, part in (("model", recipe.model), ("data", recipe.data), ("search", recipe.search)):
        facts += [(f"{title}: {name.replace('_', ' ')}", _shown(value)) for name, value in vars(part).items()]
    note = "Every figure holds for images and prompts like those tried here; others can turn the order around."
    return View("Where this comes from", facts=[*facts, *recipe.tools.items()], notes=(note,))


def example(prepared: Prepared, before: tuple[Image.Image, str], after: tuple[Image.Image, str]) -> Example:
    """A sample's image with the tokens that the paper's settings and the chosen ones keep, and the answers."""
    question = prepared.question
    facts: list[tuple[str, object]] = [("Every token", _said(prepared.answer))]
    if question.answer is not None:
        facts.append(("Right answer", question.answer))
    names = ("The paper's settings", "The chosen settings")
    facts += [(name, _said(answer)) for name, (_, answer) in zip(names, (before, after), strict=True)]
    alt = "The image; dropped visual tokens are dimmed"
    return Example(
        question.prompt,
        facts,
        [Picture(_png(image), f"{alt}. {name}", name) for name, (image, _) in zip(names, (before, after), strict=True)],
    )


def _said(answer: str) -> str:
    return answer if answer.strip() else "(nothing)"


def _png(picture: Image.Image) -> bytes:
    small, buffer = picture.convert("RGB"), BytesIO()
    small.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    small.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
