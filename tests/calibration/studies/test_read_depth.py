"""Read depth and budget: the ends of both curves are known, and where the knee is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calibration.studies.read_depth import Left, knee, main
from calibration.tiny_llava import HELDOUT


def test_curves_end_with_every_token(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "depth.json"
    options = ["--limit", "3", "--keep", "0.5", "0.1", "-o", str(output)]
    assert main([str(tiny_bundle), "--data", str(HELDOUT), *options]) == 0
    report = json.loads(output.read_text())
    assert [point["place"] for point in report["depth"]] == list(range(9))
    assert report["budget"][0] == {**report["depth"][-1], "place": 1.0} and report["budget"][0]["kl"] == 0
    assert report["depth"][0]["kl"] > 1 and {0.5, 0.1} < {point["place"] for point in report["budget"]}
    assert "The knee is at keep " in capsys.readouterr().out and "<html" in output.with_suffix(".html").read_text()


@pytest.mark.parametrize(("scores", "place"), [((0.9, 0.9, 0.2), 0.5), ((0.9, 0.5, 0.9), 1.0), ((0.9, 0.9, 0.9), 0.1)])
def test_the_knee_is_before_the_first_loss(scores: tuple[float, ...], place: float) -> None:
    points = [Left(keep, 0.0, score, score) for keep, score in zip((1.0, 0.5, 0.1), scores, strict=True)]
    assert knee(points).place == place
