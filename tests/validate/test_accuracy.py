"""Accuracy of a bundle, by kind of question; without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from calibration.tiny_llava import HELDOUT
from iwp_export.errors import DataError
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.validate.accuracy import Accuracy, Artefact, describe, main, measure_accuracy, shares
from iwp_export.validate.questions import Question, read_questions


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return list(islice(read_questions(HELDOUT), 12))


def test_tiny_llava_answers_what_it_can_see(tiny_bundle: Path, questions: list[Question]) -> None:
    pipeline = Pipeline.open(tiny_bundle, threads=1)
    whole, pruned = (measure_accuracy(pipeline, questions, keep) for keep in (1.0, 0.02))
    assert list(whole.shares) == ["digit-of-colour", "colour-of-digit", "count", "all"]
    assert (whole.questions, whole.visual_tokens_kept, pruned.visual_tokens_kept) == (12, 64, 2)
    assert whole.shares["all"] > 0.9
    assert pruned.shares["all"] < 0.7


def test_shares_by_kind() -> None:
    asked = [Question((), "x", "y", kind) for kind in ("b", "a", "b", None)]
    assert shares(asked, [True, False, False, True]) == {"b": 0.5, "a": 0.0, "all": 0.5}


def test_questions_without_an_answer_are_refused(tiny_bundle: Path, questions: list[Question]) -> None:
    mixed = [*questions[:1], Question(questions[0].images, "what ?")]
    with pytest.raises(DataError, match="1 of 2 have none"):
        measure_accuracy(Pipeline.open(tiny_bundle, threads=1), mixed, 1.0)


def test_the_command_prints_a_table_and_writes_json(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "accuracy.json"
    options = ["--limit", "3", "--threads", "1", "--keep", "1", "0.3", "-o", str(output)]
    assert main([str(tiny_bundle), "--data", str(HELDOUT), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "accuracy on 3 questions"
    assert lines[1].split() == ["keep", "visual", "tokens", "digit-of-colour", "colour-of-digit", "count", "all"]
    assert [line.split()[:2] for line in lines[2:]] == [["1.00", "64"], ["0.30", "20"]]
    report = json.loads(output.read_text())
    assert [row["keep"] for row in report["accuracy"]] == [1.0, 0.3]
    assert report["command"].startswith("python -m iwp_export.validate.accuracy ")


def test_several_artefacts_share_a_table(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, output = tmp_path / "other.bundle", tmp_path / "accuracy.json"
    other.symlink_to(tiny_bundle)
    options = ["--data", str(HELDOUT), "--limit", "2", "--threads", "1", "--keep", "1", "0.3", "-o", str(output)]
    assert main([str(tiny_bundle), str(other), *options]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["accuracy", "on", "2", "questions"]
    assert lines[1][:3] == ["artefact", "keep", "visual"]
    names = ["tiny-llava.bundle", "other.bundle"]
    assert [line[:2] for line in lines[2:]] == [[name, keep] for name in names for keep in ("1.00", "0.30")]
    found = json.loads(output.read_text())["artefacts"]
    assert [artefact["artefact"] for artefact in found] == [str(tiny_bundle), str(other)]
    assert found[0]["accuracy"] == found[1]["accuracy"]


def test_artefacts_of_one_name_are_told_apart() -> None:
    accuracy = [Accuracy(0.3, 2, 20.0, {"all": 0.5})]
    artefacts = [Artefact(Path(name), "cpu", "float32", accuracy) for name in ("a/x.bundle", "b/x.bundle")]
    assert [line.split()[0] for line in describe(artefacts).splitlines()] == ["artefact", "a/x.bundle", "b/x.bundle"]
    assert describe(artefacts[:1]).splitlines()[0].split() == ["keep", "visual", "tokens", "all"]


def test_the_last_artefact_is_looked_at_before_the_first_is_asked(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iwp_export.validate.accuracy.measure_accuracy", None)
    for bad, message in ((tmp_path, "no manifest.json"), (tmp_path / "no.plan", "does not exist")):
        assert main([str(tiny_bundle), str(bad), "--data", str(HELDOUT)]) == 1
        assert message in capsys.readouterr().err
    assert main([str(tiny_bundle), "--data", str(HELDOUT), "--keep", "1", "0"]) == 1
    assert "keep must be" in capsys.readouterr().err


def test_it_needs_no_torch() -> None:
    code = "import sys, iwp_export.validate.accuracy; print(sorted({'torch', 'onnx', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_mistake_costs_one_line(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.jsonl").write_text("{}\n")
    assert main([str(tiny_bundle), "--data", str(tmp_path / "q.jsonl")]) == 1
    assert main([str(tmp_path), "--data", str(HELDOUT), "--limit", "1"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "error"]
    assert "q.jsonl, line 1: `prompt` must be" in lines[0]
