"""Gates: which end of an interval counts, and how many questions it takes; warnings; and views."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iwp_export.accuracy.measure import measure_accuracy
from iwp_export.accuracy.verdict import compare, gates, view, warnings
from iwp_export.view import terminal
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
    few = only(gates(measured(tmp_path, 72, 0, 0), max_drop=0.05))
    assert not few.passed and "even if no answer changes: at least 73 are needed" in few.remedy
    wrong = only(gates(measured(tmp_path, 0, 0, 9), max_drop=0.1))
    assert (wrong.passed, wrong.measured) == (False, "the unpruned model scores 0")


@pytest.mark.parametrize(
    ("answered", "own", "checkpoint", "passes"),
    [
        (True, "x" * 8, "x" * 8, True),
        (True, "x" * 7 + "y", "x" * 8, True),  # one of eight may be a tie
        (True, "y" * 8, "x" * 8, False),  # a tokenizer that prints other letters loses nothing by pruning
        (True, "yyyyyyxx", "x" * 8, False),
        (True, "y" * 8, "z" * 8, False),  # both score nothing, and are not the same
        (False, "x" * 8, "x" * 8, True),
        (False, "xxxyyyyy", "x" * 8, True),
        (False, "y" * 8, "x" * 8, False),
    ],
)
def test_unpruned_answers_are_the_checkpoint_s(
    tmp_path: Path, answered: bool, own: str, checkpoint: str, passes: bool
) -> None:
    parrot: Any = Parrot({1.0: own, 0.3: own})
    data = questions(tmp_path, ["x" if answered else None] * 8)
    found = measure_accuracy(parrot, data, original=lambda each, most: checkpoint[int(each.prompt.split()[-1])])
    gate = only(gates(found))
    assert (gate.name, gate.passed) == ("unpruned answers", passes)


def test_without_answers_the_drop_is_of_the_answers_that_stay(tmp_path: Path) -> None:
    def gate(count: int) -> Gate:
        parrot: Any = Parrot({1.0: ["x"] * count, 0.3: ["x"] * count})
        return only(gates(measure_accuracy(parrot, questions(tmp_path, [None] * count)), max_drop=0.1))

    few, many = gate(34), gate(35)
    assert (few.passed, many.passed) == (False, True)
    assert many.measured == "100.0 % (90.1 to 100.0) are the unpruned model's"
    assert many.limit == "at most 10.0 % of the answers changed (the questions have no right ones)"
    assert "at least 35 are needed" in few.remedy


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


def test_keep_1_alone_passes_no_gate_of_an_artefact_that_prunes(tmp_path: Path) -> None:
    asked = questions(tmp_path, ["a"] * 600)
    for own, passed in ((0.3, False), (1.0, True)):
        pipeline: Any = Parrot({1.0: ["a"] * 600}, keep=own)
        found = measure_accuracy(pipeline, asked, [1.0])
        made = gates(found, max_drop=0.01, min_agreement=0.9)
        assert [gate.passed for gate in made] == [passed, passed]
        assert bool(warnings(found, made)) != passed
        assert all("own keep ratio, 0.3" in gate.remedy for gate in made if not passed)


def test_what_makes_figures_doubtful(tmp_path: Path) -> None:
    other = measured(tmp_path, 600, 0, 0, keep=0.5, own=0.3)
    (doubt,) = warnings(other, gates(other, max_drop=0.01))
    assert "of keep 0.5" in doubt and "own keep 0.3 was not measured" in doubt
    assert warnings(other) == []
    parrot: Any = Parrot({1.0: ["a"], 0.3: ["b"]}, finish="length")
    cut, zero = reversed(warnings(measure_accuracy(parrot, questions(tmp_path, ["c"]))))
    assert "100.0 % of the answers were cut off after 16 tokens" in cut and "scores 0 (exact)" in zero
    (calibrated,) = warnings(replace(other, calibrated=True))
    assert calibrated.startswith("The pruning settings were chosen on the data")


def test_a_view_has_what_was_measured(tmp_path: Path) -> None:
    parrot: Any = Parrot({1.0: ["a", "b", "c", "d"], 0.3: ["a", "x", "c", ""]})
    made = view(measure_accuracy(parrot, questions(tmp_path, ["a", "b", "c", "e"], ["one", "two"])))
    (said,), (chart,), (table,) = made.sentences, made.charts, made.tables
    assert said.startswith("Keep 0.3 has 66.7 % (") and "right answers 50.0 % after 75.0 % on 4 questions" in said
    assert table.rows[1][:4] == ["0.30", "4", "100.0 %", "0.0 %"] and table.strong == {1}
    assert [series.name for series in chart.series] == ["right answers", "same answer as unpruned"]
    assert chart.series[0].x == pytest.approx((4 / 12, 1))
    first, second, *_ = made.examples
    assert list(first.facts) == [("right", "b"), ("keep 1", "b"), ("keep 0.3", "x")]
    assert list(second.facts)[2] == ("keep 0.3", "(nothing)")
    assert first.pictures[0].png.startswith(b"\x89PNG") and "a.png" in first.pictures[0].caption


def test_a_view_without_answers(tmp_path: Path) -> None:
    parrot: Any = Parrot({1.0: ["a", "b"], 0.3: ["a", "x"]})
    made = view(measure_accuracy(parrot, questions(tmp_path, [None, None])))
    assert made.sentences[0].startswith("Keep 0.3, on 2 questions of the data without answers: 50.0 %")
    text = terminal.render([made])
    assert "no right answers" in text and "of keep 1" not in text


def test_several_artefacts_share_a_table(tmp_path: Path) -> None:
    accuracy = replace(measured(tmp_path, 2, 0, 0), calibrated=True)
    made = compare([("a/x.bundle", accuracy), ("b/x.bundle", accuracy)])
    assert [row[:2] for row in made.tables[0].rows] == [
        ["a/x.bundle", "1.00"], ["a/x.bundle", "0.30"], ["b/x.bundle", "1.00"], ["b/x.bundle", "0.30"],
    ]  # fmt: skip
    assert len(made.sentences) == 2 and made.sentences[0] == "Accuracy on 2 questions of the data."
    assert [series.name for series in made.charts[0].series] == ["a/x.bundle", "b/x.bundle"]
