"""The command: one artefact, or several in a table; without torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from calibration.tiny_llava import HELDOUT
from iwp_export.accuracy.__main__ import Artefact, compare, main
from tests.accuracy.made_up import measured


def test_the_command_prints_a_table_and_writes_json(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "accuracy.json"
    options = ["--limit", "3", "--threads", "1", "--keep", "1", "0.3", "-o", str(output)]
    assert main([str(tiny_bundle), *options]) == 0  # on the questions that ship
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Keep 0.3 has ") and "on 3 questions of tiny-llava's held-out set" in lines[0]
    assert lines[2].split()[:6] == ["keep", "visual", "tokens", "digit-of-colour", "colour-of-digit", "count"]
    assert [line.split()[:2] for line in lines[3:]] == [["1.00", "64"], ["0.30", "20"]]
    report = json.loads(output.read_text())
    assert [row["keep"] for row in report["accuracy"]["at"]] == [1.0, 0.3]
    assert report["command"].startswith("python -m iwp_export.accuracy ")


def test_several_artefacts_share_a_table(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, output = tmp_path / "other.bundle", tmp_path / "accuracy.json"
    other.symlink_to(tiny_bundle)
    options = ["--data", str(HELDOUT), "--limit", "2", "--threads", "1", "--keep", "0.3", "-o", str(output)]
    assert main([str(tiny_bundle), str(other), *options]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["accuracy", "on", "2", "questions", "of", "questions.jsonl"]
    assert lines[1][:3] == ["artefact", "keep", "visual"]
    names = ["tiny-llava.bundle", "other.bundle"]
    assert [line[:2] for line in lines[2:]] == [[name, keep] for name in names for keep in ("1.00", "0.30")]
    found = json.loads(output.read_text())["artefacts"]
    assert [artefact["artefact"] for artefact in found] == [str(tiny_bundle), str(other)]
    assert found[0]["accuracy"] == found[1]["accuracy"]


def test_artefacts_of_one_name_are_told_apart(tmp_path: Path) -> None:
    accuracy = replace(measured(tmp_path, 2, 0, 0), examples=())
    artefacts = [Artefact(Path(name), "cpu", "float32", accuracy) for name in ("a/x.bundle", "b/x.bundle")]
    names = ["a/x.bundle"] * 2 + ["b/x.bundle"] * 2
    assert [line.split()[0] for line in compare(artefacts).splitlines()] == ["artefact", *names]


def test_the_last_artefact_is_looked_at_before_the_first_is_asked(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iwp_export.accuracy.__main__.measure_accuracy", None)
    for bad, message in ((tmp_path, "no manifest.json"), (tmp_path / "no.plan", "does not exist")):
        assert main([str(tiny_bundle), str(bad), "--data", str(HELDOUT)]) == 1
        assert message in capsys.readouterr().err
    assert main([str(tiny_bundle), "--data", str(HELDOUT), "--keep", "1", "0"]) == 1
    assert "keep must be" in capsys.readouterr().err


def test_a_mistake_costs_one_line(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.jsonl").write_text("{}\n")
    assert main([str(tiny_bundle), "--data", str(tmp_path / "q.jsonl")]) == 1
    assert main([str(tmp_path), "--data", str(HELDOUT), "--limit", "1"]) == 1
    assert main([str(tiny_bundle), "--data", str(HELDOUT), "--score", "yesno"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error"] * 3
    assert "q.jsonl, line 1: `prompt` must be" in lines[0]
