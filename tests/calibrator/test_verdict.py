"""Each sentence of a verdict is there where it is true, and nowhere else; and what is shown of a recipe."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iwp_export.bundle.recipe import Objective, Recipe
from iwp_export.calibrator.measurements import Measurements
from iwp_export.calibrator.search import BLIND_SAMPLES, Budget, Found, Search, controls_of
from iwp_export.calibrator.verdict import (
    kind_of,
    ranking,
    verdict,
    view,
)
from iwp_export.pruning.settings import PruningSettings
from iwp_export.view import html, terminal
from tests.calibrator.fake import FakeScores, questions
from tests.calibrator.made_up import PAPER as RECIPE_PAPER
from tests.calibrator.made_up import recipe_of_40

PAPER = PruningSettings(keep=0.222)
CHOSEN = PAPER.with_changes(layer=2, importance="value", chunk=1)
BLIND = PruningSettings(layer=0, keep=1e-4).with_changes(importance="random")
SENTENCES = {
    "paper chosen": "The paper's settings (layer ",
    "other chosen": "Chosen: ",
    "against the paper": "The paper's settings keep ",
    "random as well": "Random does as well",
    "against random": "Random tokens at the same place (mean of 5 draws) keep ",
    "not within": "Nothing that was tried stays within the allowed drop",
    "nothing keeps": "At this budget nothing keeps the answers",
    "few": " samples are few",
    "passes": "`validate --max-drop` passes",
    "may refuse": "`validate --max-drop` may refuse the choice: ",
    "blind": "answers stay the same with one visual token left",
    "wrong": "of its own answers the unpruned model has ",
    "unsure": "of its own answers the unpruned model is unsure",
}
GOOD = {"other chosen", "against the paper", "against random"}
KEEP, DROP = Budget("keep", (0.222,)), Budget("max_drop", (0.02,))

Losses = dict[PruningSettings, float]
SHARES: Losses = {PAPER: 0.3, CHOSEN: 0.05, BLIND: 0.9}
"""Answers that change; of a control 0.6."""


def evidence(
    shares: Losses = SHARES,
    chosen: PruningSettings = CHOSEN,
    budget: Budget = KEEP,
    count: int = 96,
    answer: str | None = "right",
    held_out: int = 0,
    **unpruned: float,
) -> Found:
    """Of made-up scores: at a share s, each sample of s in 1 is 2 nats off and the others 0.001."""

    def loss(settings: PruningSettings, sample: int) -> float:
        return 2.0 if (sample * 61 % 100 + 0.5) / 100 < shares.get(settings, 0.6) else 0.001

    measured = Measurements(
        FakeScores(loss, **unpruned),  # type: ignore[arg-type]
        questions(count + held_out, answer),
    )
    controls = tuple(dict.fromkeys([*controls_of(chosen), *controls_of(PAPER, 1)]))
    measured.run("all", [PAPER, chosen, *controls], count + held_out, with_answer=True)
    measured.run("blind", [BLIND], min(count, BLIND_SAMPLES))
    search = Search(measured, budget, "kl", (), PAPER, BLIND, lambda settings: 1.0, (count,))
    return Found(search, chosen, (PAPER, CHOSEN), controls, runs=0)


def said(given: Found) -> set[str]:
    lines = verdict(given)
    found = {name for name, text in SENTENCES.items() if any(text in line for line in lines)}
    assert len(found) == len(lines) and all(line.endswith(".") and line.isprintable() for line in lines)
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, GOOD),
        ({"answer": None}, GOOD),
        ({"chosen": PAPER, "shares": {PAPER: 0.05, BLIND: 0.9}}, {"paper chosen", "against random"}),
        ({"shares": {**SHARES, CHOSEN: 0.11}}, GOOD | {"nothing keeps"}),
        ({"shares": {**SHARES, **dict.fromkeys(controls_of(CHOSEN)[:5], 0.05)}}, GOOD | {"random as well"}),
        ({"shares": {**SHARES, controls_of(CHOSEN)[0]: 0.0}}, GOOD),
        ({"shares": {**SHARES, controls_of(CHOSEN)[5]: 0.01}}, GOOD),
        ({"shares": {**SHARES, controls_of(PAPER)[0]: 0.01}}, GOOD),
        ({"count": 23}, GOOD | {"few"}),
        ({"count": 24}, GOOD),
        ({"shares": {**SHARES, BLIND: 0.3}}, GOOD | {"blind"}),
        ({"shares": {**SHARES, BLIND: 0.5}}, GOOD),
        ({"right": False}, GOOD | {"wrong"}),
        ({"right": False, "answer": None}, GOOD),
        ({"confidence": 0.69}, GOOD | {"unsure"}),
        ({"confidence": 0.69, "answer": None}, GOOD | {"unsure"}),
        ({"confidence": 0.5, "right": False}, GOOD | {"wrong"}),
        ({"confidence": 0.7}, GOOD),
        ({"held_out": 48}, GOOD),
        ({"held_out": 48, "count": 23}, GOOD | {"few"}),
        ({"budget": DROP}, GOOD | {"not within"}),
        ({"budget": DROP, "right": False}, GOOD | {"not within", "wrong"}),
        ({"budget": DROP, "shares": {**SHARES, CHOSEN: 0.01}}, GOOD | {"may refuse"}),
        ({"budget": DROP, "shares": {**SHARES, CHOSEN: 0.0}, "count": 200}, GOOD | {"passes"}),
        ({"budget": DROP, "shares": {**SHARES, CHOSEN: 0.0}, "count": 200, "answer": None}, GOOD | {"passes"}),
        (
            {"budget": DROP, "chosen": PAPER, "shares": {PAPER: 0.01, CHOSEN: 0.3, BLIND: 0.9}},
            {"paper chosen", "against random", "may refuse"},
        ),
        ({"budget": DROP, "chosen": PAPER}, {"paper chosen", "against random", "not within"}),
    ],
)
def test_sentences(changes, expected):
    assert said(evidence(**changes)) == expected


def test_figures_in_the_sentences():
    first, second, third = verdict(evidence())
    assert first.startswith(
        "Chosen: layer 2, chunk 1, importance value, the rest as in the paper (layer 2, keep 0.222)"
    )
    assert "On 96 samples 94.8 % of the answers stay" in first and "(95 % interval 88.4 % to 97.8 %, of" in first
    assert "of the samples that chose it: others may show less" in first and first.endswith("KL 0.11 nats.")
    assert second.startswith("The paper's settings keep 69.8 %, the choice +25.0 points (paired 95 % interval +1")
    assert third.startswith("Random tokens at the same place (mean of 5 draws) keep 40.6 %, the choice +54.2 points")


def test_held_out_samples_are_judged_by_and_nothing_else_is():
    """Of 24 more samples the choice changes one; of the 96 that chose it, five."""
    first, second, *_ = verdict(evidence(held_out=24))
    assert "On 24 samples that took no part in the choice 95.8 % of the answers stay" in first
    assert "(95 % interval 79.8 % to 99.3 %); KL 0.084 nats." in first
    assert second.startswith("The paper's settings keep 70.8 %")


def test_a_drop_that_is_not_shown_says_why():
    (sentence,) = [line for line in verdict(evidence(budget=DROP, shares={**SHARES, CHOSEN: 0.0})) if "refuse" in line]
    assert "96 questions cannot show it, even if no answer changes: at least 189 are needed" in sentence


def test_an_interval_has_a_width_where_no_answer_changed():
    first, *_ = verdict(evidence({**SHARES, CHOSEN: 0.0}, count=2))
    assert "100.0 % of the answers stay the unpruned model's (95 % interval 34.2 % to 100.0 %, of" in first


SHARE = st.floats(0, 1)


@given(SHARE, SHARE, SHARE, SHARE, st.integers(1, 40), st.sampled_from([PAPER, CHOSEN]), st.booleans())
def test_a_verdict_is_never_empty(paper, other, blind, confidence, count, chosen, right):
    shares = {PAPER: paper, CHOSEN: other, BLIND: blind}
    found = said(evidence(shares, chosen, count=count, confidence=confidence, right=right))
    assert len(found & {"paper chosen", "other chosen"}) == 1
    assert ("against the paper" in found) == (chosen != PAPER) and "against random" in found


def choose(recipe: Recipe, role: str) -> Recipe:
    """The recipe with the first candidate of a role chosen."""
    chosen = next(figures for figures in recipe.candidates if figures.role == role)
    figures = tuple(replace(each, chosen=each is chosen) for each in recipe.candidates)
    return replace(recipe, settings=chosen.settings, candidates=figures)


def test_candidates_are_in_order_and_the_dropped_ones_last():
    recipe = recipe_of_40()
    ranked = ranking(recipe)
    last, dropped = view(recipe)[0].tables
    groups = [[each for each in ranked[len(last.rows) :] if each.samples == rung] for rung in (24, 8)]
    for group in (ranked[: len(last.rows)], *groups):
        assert len(group) > 4 and group == sorted(group, key=lambda figures: figures.kl)
    assert ranked[len(last.rows) :] == [*groups[0], *groups[1]]
    assert dropped.page_only and len(last.rows) + len(dropped.rows) == 40
    assert [number for number, figures in enumerate(ranked) if figures.chosen] == list(last.strong)


@pytest.mark.parametrize(("objective", "sign"), [("agreement", -1), ("accuracy", -1), ("kl", 1)])
def test_the_order_is_the_objective_s(objective: Objective, sign: int):
    recipe = replace(recipe_of_40(), search=replace(recipe_of_40().search, objective=objective))
    values = [sign * getattr(each, objective) for each in ranking(recipe) if kind_of(each, recipe) != "dropped early"]
    assert values == sorted(values)


def test_a_chart_has_a_point_for_each_candidate_and_intervals_for_the_marked():
    (chart,) = view(recipe_of_40())[0].charts
    counts = {series.name: len(series.x) for series in chart.series}
    assert counts["control"] == 2 and counts["the paper's"] == counts["chosen"] == 1 and sum(counts.values()) == 40
    assert [series.name for series in chart.series if series.low] == ["control", "the paper's", "chosen"]


def test_the_terminal_shows_the_verdict_and_the_last_round():
    recipe = recipe_of_40()
    text = terminal.render(view(recipe)[:1])
    assert text.startswith("\n".join(recipe.verdict)) and "\nchosen, " in text and "\ncontrol, " in text
    assert "± " in text and "digest" not in text and text.count("\n") < 25


def test_a_page_says_where_it_comes_from_and_how_to_use_it():
    provenance = view(recipe_of_40())[-1]
    assert dict(provenance.facts)["search: runs"] == "872"
    assert provenance.command == "iwp-export tiny-llava --recipe RECIPE.json -o OUTPUT.bundle"


def test_the_paper_s_settings_may_be_chosen():
    recipe = choose(recipe_of_40(), "default")
    (row,) = [row for row in view(recipe)[0].tables[0].rows if "chosen" in str(row[0])]
    assert row[0] == "chosen" and recipe.settings == RECIPE_PAPER


def test_a_control_that_is_chosen_is_named_by_its_settings():
    (row,) = [row for row in view(choose(recipe_of_40(), "control"))[0].tables[0].rows if "chosen" in str(row[0])]
    assert "importance random" in str(row[0]) and "penalty 0" in str(row[0])


def test_a_page_is_whole_and_the_same_each_time():
    pytest.importorskip("matplotlib", reason="the extra [report] is not installed")
    name = '</title><script>1</script> a\'b; rm -rf "x"'
    recipe = recipe_of_40(name=name)
    pages = [html.render(view(recipe)[0].title, "subtitle", view(recipe)) for _ in range(2)]
    assert pages[0] == pages[1] and "<script>1" not in pages[0]
    assert recipe.verdict[2] in pages[0] and "OUTPUT.bundle" in pages[0]
