"""What is measured: tiny-llava's own answers, and figures from answers that are made up."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from calibration.tiny_llava import HELDOUT
from iwp_export.accuracy.figures import Accuracy
from iwp_export.accuracy.measure import measure_accuracy, right_shares, shares
from iwp_export.accuracy.words import describe
from iwp_export.bundle.schema import from_json, to_json
from iwp_export.errors import DataError, SettingsError
from iwp_export.questions import Question, read_questions
from iwp_export.runtime.pipeline import Pipeline
from tests.accuracy.made_up import Parrot, measured, questions


def test_tiny_llava_answers_what_it_can_see(tiny_bundle: Path) -> None:
    asked = list(islice(read_questions(HELDOUT), 12))
    pipeline = Pipeline.open(tiny_bundle, threads=1)
    found = measure_accuracy(pipeline, asked, [0.02])
    whole, pruned = found.at
    assert [kind.name for kind in whole.kinds] == ["digit-of-colour", "colour-of-digit", "count", "all"]
    assert (found.questions, found.visual_tokens) == (12, 64)
    assert (whole.visual_tokens_kept, pruned.visual_tokens_kept) == (64, 2)
    assert whole.score is not None and whole.score.mean > 0.9
    assert pruned.score is not None and pruned.score.mean < 0.7
    assert right_shares(pipeline, asked, 0.02)["all"] == round(pruned.score.mean, 4)
    first = found.examples[0]
    assert first.pruned != first.unpruned and first.prompt in {question.prompt for question in asked}
    assert [(view.rows, view.columns, len(view.kept)) for view in first.views] == [(8, 8, 2)]


def test_figures_survive_json(tmp_path: Path) -> None:
    found = measured(tmp_path, 3, 1, 0)
    assert from_json(Accuracy, to_json(found), "") == found


def test_scores_changes_and_kinds(tmp_path: Path) -> None:
    parrot: Any = Parrot({1.0: ["a", "b", "c", "d"], 0.3: ["a", "x", "c", "z"]}, finish="length")
    found = measure_accuracy(parrot, questions(tmp_path, ["a", "b", "c", "e"], ["one", "two"]))
    whole, pruned = found.at
    assert (whole.keep, pruned.keep, whole.relative, whole.cut) == (1.0, 0.3, None, 1)
    assert (pruned.scores, pruned.same) == ((1, 0, 1, 0), (True, False, True, False))
    assert pruned.relative is not None and pruned.relative.mean == pytest.approx(2 / 3)
    assert [(kind.name, kind.score and kind.score.mean) for kind in pruned.kinds] == [
        ("one", 1),
        ("two", 0),
        ("all", 0.5),
    ]
    assert [example.number for example in found.examples] == [2, 4]
    assert "100.0 % of the answers were cut off after 16 tokens" in describe(found)


def test_the_examples_are_those_that_changed_what_was_lost_first(tmp_path: Path) -> None:
    def changes(right: int, lost: int, gained: int) -> list[tuple[int, str, str]]:
        found = measured(tmp_path, right, lost, gained)
        return [(each.number, each.unpruned, each.pruned) for each in found.examples]

    assert changes(9, 6, 6) == [(10, "x", "y"), (11, "x", "y"), (12, "x", "y"), (13, "x", "y")]
    assert changes(9, 2, 1) == [(10, "x", "y"), (11, "x", "y"), (12, "y", "x")]  # all have one image


def test_f1_is_of_the_set(tmp_path: Path) -> None:
    parrot: Any = Parrot({1.0: ["Yes", "Yes", "No", "No"], 0.5: ["Yes", "No", "No", "No"]}, keep=0.5)
    found = measure_accuracy(parrot, questions(tmp_path, ["yes", "yes", "no", "yes"]), rule="yesno")
    whole, pruned = found.at
    assert found.yes == (True, True, False, True)
    assert whole.score is not None and whole.score.mean == pytest.approx(0.8)  # precision 1, recall 2/3
    assert pruned.relative is not None and pruned.relative.mean == pytest.approx(0.5 / 0.8)
    assert pruned.more == pytest.approx({"accuracy": 0.5, "precision": 1, "recall": 1 / 3, "share of yes": 0.25})


def test_without_answers_agreement_alone(tmp_path: Path) -> None:
    parrot: Any = Parrot({1.0: ["a", "b"], 0.3: ["a", "x"]})
    found = measure_accuracy(parrot, questions(tmp_path, [None, None]), rule="vqa")
    assert (found.rule, found.yes, found.at[1].score, found.at[1].agreement.mean) == ("", (), None, 0.5)
    assert "Keep 0.3, on 2 questions of the data without answers: 50.0 %" in describe(found)


def test_texts_that_a_report_cannot_hold_are_made_plain(tmp_path: Path) -> None:
    parrot: Any = Parrot({1.0: ["a\nb\x1b" + "c" * 900], 0.3: ["x"]})
    found = measure_accuracy(parrot, questions(tmp_path, ["a"]), data="my\ndata")
    assert found.data == "my data"
    assert found.examples[0].unpruned.startswith("a b ccc") and len(found.examples[0].unpruned) == 400
    assert from_json(Accuracy, to_json(found), "") == found


def test_bad_input_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    parrot: Any = Parrot({})
    mixed = questions(tmp_path, ["a", None])
    for error, given, message in (
        (DataError, {"questions": mixed}, "1 of 2 have none"),
        (SettingsError, {"questions": mixed[:1], "keeps": [0.0]}, "keep must be"),
        (SettingsError, {"questions": mixed[:1], "rule": "bleu"}, "no scoring rule 'bleu'"),
    ):
        with pytest.raises(error, match=message):
            measure_accuracy(parrot, **given)
    with pytest.raises(DataError, match="none of 1 has one"):
        right_shares(parrot, mixed[1:], 1.0)


def test_shares_by_kind() -> None:
    asked = [Question((), "x", "y", kind) for kind in ("b", "a", "b", None)]
    assert shares(asked, [True, False, False, True]) == {"b": 0.5, "a": 0.0, "all": 0.5}


def test_it_needs_no_torch() -> None:
    modules = "measure, gates, words, data, __main__"
    code = (
        f"import sys; from iwp_export.accuracy import {modules}; "
        "print(sorted({'torch', 'onnx', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
