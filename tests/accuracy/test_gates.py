"""Gates: which end of an interval counts, and how many questions it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from iwp_export.accuracy.gates import drop_needs, gates, warnings
from iwp_export.accuracy.measure import measure_accuracy
from iwp_export.errors import SettingsError
from iwp_export.view.figures import Gate
from tests.accuracy.made_up import Parrot, measured, questions


def only(made: list[Gate]) -> Gate:
    (gate,) = made
    return gate


def test_the_drop_must_be_shown_to_be_small_enough(tmp_path: Path) -> None:
    assert only(gates(measured(tmp_path, 600, 0, 0), max_drop=0.01)).passed
    small = only(gates(measured(tmp_path, 597, 3, 0), max_drop=0.01))  # 0.5 % lost, up to 1.5 % by the interval
    assert not small.passed
    assert (small.measured, small.where) == ("99.5 % (98.5 to 100.0) of it", "keep 0.3")
    assert "these questions do not show it" in small.remedy
    assert only(gates(measured(tmp_path, 597, 3, 0), max_drop=0.02)).passed
    large = only(gates(measured(tmp_path, 400, 200, 0), max_drop=0.1))
    assert not large.passed and "shown to be larger" in large.remedy


@pytest.mark.parametrize("wrong", [0, 40])
def test_too_few_questions_cannot_pass_and_the_number_is_given(tmp_path: Path, wrong: int) -> None:
    def gate(right: int) -> Gate:
        answers = ["x"] * right + ["y"] * wrong
        parrot: Any = Parrot({1.0: answers, 0.3: answers})
        accuracy = measure_accuracy(parrot, questions(tmp_path, ["x"] * len(answers)))
        needed.append(drop_needs(accuracy, 0.05))
        return only(gates(accuracy, max_drop=0.05))

    needed: list[int] = []
    few = gate(20)
    assert not few.passed and f"even if no answer changes: at least {needed[0]} are needed" in few.remedy
    assert gate(400).passed
    if not wrong:
        assert needed[0] == 73  # 1.96^2 * 0.95 / 0.05
        assert not gate(72).passed and gate(73).passed


def test_f1_knows_its_number_too(tmp_path: Path) -> None:
    def accuracy(times: int) -> Any:
        parrot: Any = Parrot({1.0: ["yes", "no", "no", "yes"] * times, 0.3: ["yes", "no", "no", "yes"] * times})
        return measure_accuracy(parrot, questions(tmp_path, ["yes", "no", "yes", "no"] * times), rule="yesno")

    needed = drop_needs(accuracy(10), 0.05)
    assert needed % 4 != 0
    assert not only(gates(accuracy(needed // 4), max_drop=0.05)).passed
    assert only(gates(accuracy(needed // 4 + 1), max_drop=0.05)).passed


def test_agreement_counts_from_its_lower_end(tmp_path: Path) -> None:
    assert only(gates(measured(tmp_path, 200, 0, 0), min_agreement=0.98)).passed
    assert not only(gates(measured(tmp_path, 196, 2, 2), min_agreement=0.98)).passed
    few = only(gates(measured(tmp_path, 50, 0, 0), min_agreement=0.99))
    assert not few.passed and "at least 381 are needed" in few.remedy


def test_the_artefact_s_own_ratio_is_gated_if_it_was_measured(tmp_path: Path) -> None:
    def where(own: float) -> list[str]:
        parrot: Any = Parrot({keep: ["x"] * 9 for keep in (1.0, 0.3, 0.1)}, keep=own)
        return [gate.where for gate in gates(measure_accuracy(parrot, questions(tmp_path, ["x"] * 9), [0.3, 0.1]), 0.5)]

    assert where(0.1) == ["keep 0.1"]
    assert where(0.2) == ["keep 0.3", "keep 0.1"]
    assert where(1.0) == ["keep 1"]


def test_what_cannot_be_measured_fails(tmp_path: Path) -> None:
    parrot: Any = Parrot({1.0: ["x"] * 99, 0.3: ["x"] * 99})
    blank = measure_accuracy(parrot, questions(tmp_path, [None] * 99))
    drop, agreement = gates(blank, 0.1, 0.9)
    assert (drop.passed, drop.measured, agreement.passed) == (False, "the questions have no answers", True)
    assert "min-agreement, which needs none" in drop.remedy
    wrong = only(gates(measured(tmp_path, 0, 0, 9), max_drop=0.1))
    assert (wrong.passed, wrong.measured) == (False, "the unpruned model scores 0")


@pytest.mark.parametrize(("name", "value"), [("max_drop", 0.0), ("max_drop", 1.0), ("min_agreement", float("nan"))])
def test_limits_that_mean_nothing_are_refused(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"{name} must be a share above 0 and below 1") as refused:
        gates(measured(tmp_path, 3, 0, 0), **{name: value})
    assert refused.value.options == (name,)


def test_keep_1_alone_passes_no_gate_of_an_artefact_that_prunes(tmp_path: Path) -> None:
    asked = questions(tmp_path, ["a"] * 600)
    for own, passed in ((0.3, False), (1.0, True)):
        pipeline: Any = Parrot({1.0: ["a"] * 600}, keep=own)
        found = measure_accuracy(pipeline, asked, [1.0])
        made = gates(found, max_drop=0.01, min_agreement=0.9)
        assert [gate.passed for gate in made] == [passed, passed]
        assert bool(warnings(found, made)) != passed
        assert all("own keep ratio, 0.3" in gate.remedy for gate in made if not passed)


def test_gates_of_another_ratio_than_the_artefact_s_are_doubtful(tmp_path: Path) -> None:
    other = measured(tmp_path, 600, 0, 0, keep=0.5, own=0.3)
    (doubt,) = warnings(other, gates(other, max_drop=0.01))
    assert "of keep 0.5" in doubt and "own keep 0.3 was not measured" in doubt
    assert warnings(other, []) == []
    own = measured(tmp_path, 600, 0, 0)
    assert warnings(own, gates(own, max_drop=0.01)) == []
