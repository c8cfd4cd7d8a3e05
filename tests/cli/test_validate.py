"""validate and report: one real, small run each way; gates that fail; and what they refuse."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from calibration.tiny_llava import HELDOUT
from iwp_export.cli.main import main
from iwp_export.exporter.checkpoint import Checkpoint
from iwp_export.reports.report import read_report

SMALL = ["--limit", "3", "--parity-samples", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def recording(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the checkpoint does with one question; made by a validation that passes."""
    folder = tmp_path_factory.mktemp("recording")
    file, report = folder / "golden.npz", folder / "report.json"
    assert main(["validate", str(tiny_bundle), *SMALL, "--record", str(file), "-o", str(report)]) == 0
    made = read_report(report)
    assert made.passed and made.parity is not None and made.accuracy is not None
    assert made.parity.samples == 1 and [keep.keep for keep in made.parity.keeps] == [1.0, 0.3, 0.111]
    assert [found.keep for found in made.accuracy.at] == [1.0, 0.3]
    assert made.artefact.name == tiny_bundle.name
    return file


def test_a_recording_is_checked_without_the_checkpoint(
    tiny_bundle: Path, recording: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("iwp_export.backends.torch.session.TorchSession.__init__", _no_torch)
    assert main(["validate", str(tiny_bundle), *SMALL, "--against", str(recording), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["format"] == "iwp-report"
    assert {gate["name"] for gate in report["gates"]} >= {"integrity", "caches", "logits", "kept tokens"}


def _no_torch(*args: object, **options: object) -> None:
    raise AssertionError("torch was asked")


def test_gates_that_fail_are_exit_code_1(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three questions cannot show that an artefact loses at most a tenth."""
    report = tmp_path / "report.json"
    limits = ["--max-drop", "10%", "--min-agreement", "90%"]
    assert main(["validate", str(tiny_bundle), *SMALL, "--against", "none", *limits, "-o", str(report)]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("FAILED: max-drop, min-agreement (2 of 2 gates).")
    assert not read_report(report).passed
    assert main(["report", str(report)]) == 1
    assert capsys.readouterr().out.startswith("FAILED: max-drop")


def test_what_makes_scores_doubtful_is_a_warning(tiny_bundle: Path, tmp_path: Path) -> None:
    """`--strict` must fail on it as on a clock that moves."""
    report = tmp_path / "report.json"
    options = ["--against", "none", "--max-new-tokens", "1", "--strict"]
    assert main(["validate", str(tiny_bundle), *SMALL, *options, "-o", str(report)]) == 1
    made = read_report(report)
    (said,) = [line for line in made.warnings if "cut off after 1 tokens" in line]
    assert said not in made.verdict
    assert [(gate.name, gate.passed) for gate in made.gates] == [("no warnings", False)]


def test_several_artefacts_are_compared(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each artefact and keep ratio, and a list of their reports."""
    other, output = tmp_path / "other.bundle", tmp_path / "all.json"
    shutil.copytree(tiny_bundle, other)
    limits = ["--keep", "1", "0.1", "--max-drop", "99%", "-o", str(output)]
    assert main(["validate", str(tiny_bundle), str(other), *SMALL, *limits]) == 1
    shown = capsys.readouterr().out
    assert "At keep 0.1 other.bundle scores +0.0 points" in shown
    rows = [line.split()[:2] for line in shown.splitlines() if line.split()[1:2] in (["1.00"], ["0.10"])]
    assert rows == [[name, keep] for name in (tiny_bundle.name, "other.bundle") for keep in ("1.00", "0.10")]
    assert [each["format"] for each in json.loads(output.read_text())["artefacts"]] == ["iwp-report"] * 2
    assert main(["validate", str(tiny_bundle), str(other), "--monitors"]) == 2
    assert "leave these out (--monitors)" in capsys.readouterr().err


def test_monitors_take_the_checkpoint_that_parity_has_loaded(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[torch.dtype] = []
    load = Checkpoint.load_model

    def count(self: Checkpoint, dtype: str) -> Any:
        model = load(self, dtype)
        loaded.append(model.dtype)
        return model

    monkeypatch.setattr(Checkpoint, "load_model", count)
    options = ["--monitors", "--checkpoint-dtype", "bfloat16", "--limit", "1", "--threads", "1"]
    main(["validate", str(tiny_bundle), *options])
    assert loaded == [torch.bfloat16]
    assert main(["validate", str(tiny_bundle), *options, "--against", "none"]) == 0
    assert loaded == [torch.bfloat16] * 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--against", "nowhere"], "nothing to compare with at nowhere"),
        (["--against", "nowhere.npz"], "nowhere.npz"),
        (["--checkpoint", "/nowhere"], "/nowhere"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--keep", "2"], "keep must be"),
        (["--limit", "0"], "limit must be 1 or more, got 0 (--limit)"),
        (["--parity-samples", "-1"], "(--parity-samples)"),
        (["--max-drop", "1"], "(--max-drop)"),
        (["--max-drop=-2%"], "(--max-drop)"),
        (["--record", "a.npz", "--against", "none"], "a recording is of the checkpoint, not of none"),
        (["-o", "report.txt"], "ends in .json or .html"),
        (["--record", str(HELDOUT)], "ends in .npz"),
        (["--record", "a.npz", "-o", "report.json", "sub/../report.json"], "given twice (-o)"),
        (["--data", "data.json", "-o", "data.json", "--force"], "is read too"),
        (["-o", "{bundle}/report.json"], "is inside"),
        (["--against", "{bundle}"], "is the artefact itself"),
    ],
)
def test_mistakes_cost_one_line_and_exit_code_2(
    tiny_bundle: Path, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [word.format(bundle=tiny_bundle) for word in arguments]
    assert main(["validate", str(tiny_bundle), "--limit", "1", "--parity-samples", "1", *arguments]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("iwp-export: error: ")
    assert named in line


def test_what_was_measured_is_shown_even_if_the_disk_is_full(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    output = tmp_path / "report.json"
    assert main(["validate", str(tiny_bundle), *SMALL, "--against", "none", "-o", str(output)]) == 2
    shown = capsys.readouterr()
    assert "Measured; no gate was set." in shown.out and "the disk is full" in shown.err
    assert list(tmp_path.iterdir()) == []
