"""Each sentence of a verdict is there where it is true, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st

from iwp_export.calibrator.candidates import Budget, controls_of
from iwp_export.calibrator.measurements import Measurements
from iwp_export.calibrator.search import Found
from iwp_export.calibrator.verdict import BLIND_SAMPLES, Evidence, two_digits, verdict
from iwp_export.pruning.settings import PruningSettings
from tests.calibrator.fake import FakeScores, questions

PAPER = PruningSettings(keep=0.222)
CHOSEN = PAPER.with_changes(layer=2, importance="value", chunk=1)
BLIND = PruningSettings(layer=0, keep=1e-9).with_changes(importance="random")
SENTENCES = {
    "paper chosen": "The paper's settings (layer ",
    "other chosen": "Chosen: ",
    "nothing better": "Nothing that was tried is better than the paper's",
    "nothing faster": "Nothing that was tried and is faster stays within the drop",
    "against the paper": "The paper's settings keep ",
    "random as well": "Random does as well",
    "against random": "Random tokens at the same place keep ",
    "not within": "Nothing that was tried stays within the allowed drop",
    "nothing keeps": "At this budget nothing keeps the answers",
    "few": " samples are few",
    "blind": "answers stay the same with one visual token left",
    "wrong": "Doubtful data: the unpruned model answers ",
    "unsure": "Doubtful data: the unpruned model is unsure",
    "undecided": "do not differ beyond chance",
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
    feasible: bool = True,
    answer: str | None = "right",
    **unpruned: float,
) -> Evidence:
    """Of made-up scores: at a share s, each sample of s in 1 is 2 nats off and the others 0.001."""

    def loss(settings: PruningSettings, sample: int) -> float:
        return 2.0 if (sample * 61 % 100 + 0.5) / 100 < shares.get(settings, 0.6) else 0.001

    measured = Measurements(FakeScores(loss, **unpruned), questions(count, answer))  # type: ignore[arg-type]
    controls = tuple(dict.fromkeys([*controls_of(chosen), *controls_of(PAPER)]))
    measured.run("all", [PAPER, chosen, *controls], count)
    measured.run("blind", [BLIND], min(count, BLIND_SAMPLES))
    found = Found(chosen, (PAPER, CHOSEN), controls, feasible)
    return Evidence(measured, found, PAPER, budget, "kl", count, BLIND)


def said(given: Evidence) -> set[str]:
    lines = verdict(given)
    found = {name for name, text in SENTENCES.items() if any(text in line for line in lines)}
    assert len(found) == len(lines) and all(line.endswith(".") and line.isprintable() for line in lines)
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, GOOD),
        ({"answer": None}, GOOD),
        ({"chosen": PAPER, "shares": {PAPER: 0.05, BLIND: 0.9}}, {"paper chosen", "nothing better", "against random"}),
        ({"shares": {**SHARES, CHOSEN: 0.11}}, GOOD | {"nothing keeps"}),
        ({"shares": {**SHARES, controls_of(CHOSEN)[0]: 0.05}}, (GOOD - {"against random"}) | {"random as well"}),
        ({"shares": {**SHARES, controls_of(CHOSEN)[1]: 0.01}}, GOOD),
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
        ({"shares": {PAPER: 0.05, CHOSEN: 0.05, BLIND: 0.9}}, GOOD | {"undecided"}),
        ({"budget": DROP, "feasible": False}, GOOD | {"not within"}),
        ({"budget": DROP, "shares": {**SHARES, CHOSEN: 0.02}}, GOOD),
        ({"budget": DROP, "shares": {**SHARES, PAPER: 0.0}}, GOOD),  # the choice is faster, not better
        (
            {"budget": DROP, "chosen": PAPER, "shares": {PAPER: 0.01, CHOSEN: 0.3, BLIND: 0.9}},
            {"paper chosen", "nothing faster", "against random"},
        ),
        (
            {"budget": DROP, "chosen": PAPER, "feasible": False},
            {"paper chosen", "against random", "not within"},
        ),
    ],
)
def test_sentences(changes, expected):
    assert said(evidence(**changes)) == expected


def test_figures_in_the_sentences():
    first, second, third = verdict(evidence())
    assert first.startswith(
        "Chosen: layer 2, chunk 1, importance value, the rest as in the paper (layer 2, keep 0.222)"
    )
    assert "On 96 samples 95 % of the answers stay" in first and "(95 % interval 88 % to 98 %)" in first
    assert first.endswith("KL 0.11 nats.")
    assert second.startswith("The paper's settings keep 70 %, the choice +25 points (paired 95 % interval +1")
    assert third.startswith("Random tokens at the same place keep 41 %, the choice +54 points")


def test_an_interval_has_a_width_where_no_answer_changed():
    first, *_ = verdict(evidence({**SHARES, CHOSEN: 0.0}, count=2))
    assert "100 % of the answers stay the unpruned model's (95 % interval 34 % to 100 %); KL 0.001 nats." in first


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (4.93e-6, "0.0000049"), (0.0123, "0.012"), (0.1, "0.1"), (0.996, "1"), (1.234, "1.2"), (12.6, "13")],
)
def test_two_digits(value, text):
    assert two_digits(value) == text


SHARE = st.floats(0, 1)


@given(SHARE, SHARE, SHARE, SHARE, st.integers(1, 40), st.sampled_from([PAPER, CHOSEN]), st.booleans())
@options(max_examples=25, deadline=None)
def test_a_verdict_is_never_empty(paper, other, blind, confidence, count, chosen, right):
    shares = {PAPER: paper, CHOSEN: other, BLIND: blind}
    found = said(evidence(shares, chosen, count=count, confidence=confidence, right=right))
    assert len(found & {"paper chosen", "other chosen"}) == 1
    assert len(found & {"nothing better", "against the paper"}) == 1
    assert len(found & {"random as well", "against random"}) == 1
