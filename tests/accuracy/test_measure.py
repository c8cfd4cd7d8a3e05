"""What is measured: tiny-llava's own answers, and figures from answers that are made up."""

from __future__ import annotations

import base64
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from calibration.tiny_llava import HELDOUT
from iwp_export.accuracy.figures import Accuracy
from iwp_export.accuracy.measure import measure_accuracy
from iwp_export.bundle.recipe import PruningSource
from iwp_export.bundle.schema import from_json, to_json
from iwp_export.errors import DataError, SettingsError
from iwp_export.questions import digest_of, open_data
from iwp_export.runtime.pipeline import Pipeline
from tests.accuracy.made_up import Parrot, measured, questions


def test_tiny_llava_answers_what_it_can_see(tiny_bundle: Path) -> None:
    data = open_data(HELDOUT, "", 12)
    asked = data.questions
    pipeline = Pipeline.open(tiny_bundle, threads=1)
    found = measure_accuracy(pipeline, data, [0.02])
    whole, pruned = found.at
    assert [kind.name for kind in whole.kinds] == ["digit-of-colour", "colour-of-digit", "count", "all"]
    assert (found.questions, found.visual_tokens) == (12, 64)
    assert (whole.visual_tokens_kept, pruned.visual_tokens_kept) == (64, 2)
    assert whole.score is not None and whole.score.mean > 0.9
    assert pruned.score is not None and pruned.score.mean < 0.7
    first = found.examples[0]
    assert first.pruned != first.unpruned and first.prompt in {question.prompt for question in asked}
    (picture,) = first.pictures
    assert Image.open(BytesIO(base64.b64decode(picture))).size == (480, 480)


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
    assert [example.number for example in found.examples] == [2, 4, 1, 3]


def test_the_examples_are_those_that_changed_what_was_lost_first(tmp_path: Path) -> None:
    def changes(right: int, lost: int, gained: int) -> list[tuple[int, str, str]]:
        found = measured(tmp_path, right, lost, gained)
        return [(each.number, each.unpruned, each.pruned) for each in found.examples]

    assert changes(9, 6, 6) == [(10, "x", "y"), (11, "x", "y"), (12, "x", "y"), (13, "x", "y")]
    assert changes(9, 2, 1) == [(10, "x", "y"), (11, "x", "y"), (12, "y", "x"), (1, "x", "x")]


def test_without_answers_agreement_alone(tmp_path: Path) -> None:
    parrot: Any = Parrot({1.0: ["a", "b"], 0.3: ["a", "x"]})
    found = measure_accuracy(parrot, questions(tmp_path, [None, None]), score="normalised")
    assert (found.score, found.at[1].score, found.at[1].scores, found.at[1].agreement.mean) == ("", None, (), 0.5)


def test_texts_that_a_report_cannot_hold_are_made_plain(tmp_path: Path) -> None:
    parrot: Any = Parrot({1.0: ["a\nb\x1b" + "c" * 900], 0.3: ["x"]})
    found = measure_accuracy(parrot, replace(questions(tmp_path, ["a"]), name="my\ndata"))
    assert found.data == "my data"
    assert found.examples[0].unpruned.startswith("a b\ufffdccc") and len(found.examples[0].unpruned) == 400
    assert from_json(Accuracy, to_json(found), "") == found


def test_questions_of_which_some_have_answers_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    parrot: Any = Parrot({})
    with pytest.raises(DataError, match="1 of 2 have none"):
        measure_accuracy(parrot, questions(tmp_path, ["a", None]))


def test_a_score_that_there_is_not_is_one_line(tmp_path: Path) -> None:
    parrot: Any = Parrot({})
    message = "score must be one of exact, normalised, relaxed, got 'rouge'"
    with pytest.raises(SettingsError, match=message) as refused:
        measure_accuracy(parrot, questions(tmp_path, ["a"]), score="rouge")
    assert refused.value.options == ("score",)


@pytest.mark.parametrize("limit", [None, 1])
def test_the_data_that_settings_were_chosen_on_are_known(tmp_path: Path, limit: int | None) -> None:
    file = tmp_path / "q.jsonl"
    questions(tmp_path, [])
    file.write_text('{"image": "a.png", "prompt": "what is 0"}\n{"image": "a.png", "prompt": "what is 1"}\n')
    parrot: Any = Parrot({1.0: ["a", "b"], 0.3: ["a", "b"]})
    for digest, known in ((digest_of(open_data(file, "").questions), True), ("ab" * 32, False), (None, False)):
        source = PruningSource() if digest is None else PruningSource("recipe", "r.json", "ab" * 32, data=digest)
        parrot.manifest.pruning_source = source
        assert measure_accuracy(parrot, open_data(file, "", limit)).calibrated is known
