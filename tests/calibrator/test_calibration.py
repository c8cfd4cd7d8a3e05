"""Whole calibrations of tiny-llava on two samples: what the recipe says, and that a stop in between changes nothing."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iwp_export import api
from iwp_export.bundle.recipe import RECIPE_JSON, Recipe, read_recipe
from iwp_export.calibrator.calibration import Calibration
from iwp_export.calibrator.plan import plan_calibration, read_samples
from iwp_export.calibrator.search import VARIANTS
from iwp_export.errors import RequestError
from iwp_export.pruning.settings import LEAST_KEEP, PruningSettings
from iwp_export.questions import SHIPPED
from iwp_export.scorer import Scorer
from iwp_export.settings import CalibrationSettings
from iwp_export.view.view import View

SAMPLES = SHIPPED["tiny-llava"]["samples"].parent


@pytest.fixture(autouse=True)
def page(monkeypatch):
    """In the place of the page, whose drawing takes seconds, what it is made of."""

    def write(path: Path, title: str, subtitle: str, views: Sequence[View]) -> None:
        path.write_text(f"{title} {subtitle} {[(view.sentences, view.tables) for view in views]}")

    monkeypatch.setattr("iwp_export.calibrator.calibration.write_page", write)


def calibrate(folder: Path, **options) -> Recipe:
    return api.calibrate("tiny-llava", folder / "out.json", **{"samples": 2, "layers": [4], **options})


def test_a_recipe_of_several_keep_ratios(tmp_path):
    recipe = calibrate(tmp_path, keep=[0.3, 0.111])
    assert read_recipe(tmp_path / "out.json") == recipe
    assert {path.name for path in tmp_path.iterdir()} == {"out.json", "out.html"}
    assert (recipe.search.keeps, recipe.search.rungs, recipe.settings.keep) == ((0.3, 0.111), (2,), 0.3)
    assert (recipe.data.samples, recipe.data.answers, recipe.data.name) == (2, True, "questions.jsonl")
    roles = [figures.role for figures in recipe.candidates]
    assert (roles.count("default"), roles.count("candidate"), roles.count("control")) == (1, len(VARIANTS) - 1, 6)
    assert recipe.search.runs == 2 * (2 * (len(VARIANTS) + 6)) + 2  # and those with one visual token
    assert recipe.search.runs_of_all == 2 * 2 * (len(VARIANTS) + 6)
    assert {figures.samples for figures in recipe.candidates} == {2}
    default = next(figures for figures in recipe.candidates if figures.role == "default")
    assert default.settings == PruningSettings(keep=0.3) and default.kl > 0 and default.accuracy is not None
    assert recipe.verdict[-1].startswith("2 samples are few")


def test_a_speedup_is_met(tmp_path):
    recipe = calibrate(tmp_path, speedup=1.5, layers=[1, 4])
    assert all(figures.prefill_speedup >= 1.5 for figures in recipe.candidates)
    assert recipe.search.keeps == (recipe.settings.keep,)
    assert {figures.settings.layer for figures in recipe.candidates} == {1, 4}


@pytest.mark.parametrize("options", [{"keep": [0.3, 0.111]}, {"max_drop": 0.5}])
def test_a_stopped_calibration_goes_on_to_the_same_recipe(tmp_path, monkeypatch, options):
    expected = calibrate(tmp_path / "whole", **options)
    score = Scorer.score
    for stop in (3, 25):
        left = [stop]

        def interrupted(self, *arguments, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return score(self, *arguments)

        monkeypatch.setattr(Scorer, "score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calibrate(tmp_path / "stopped", **options)
        assert {path.name for path in (tmp_path / "stopped").iterdir()} == {"out.json.progress"}
    monkeypatch.setattr(Scorer, "score", score)
    again = calibrate(tmp_path / "stopped", **options)
    assert RECIPE_JSON.to_dict(again) == RECIPE_JSON.to_dict(expected)
    pages = [(tmp_path / name / "out.html").read_bytes() for name in ("whole", "stopped")]
    assert pages[0] == pages[1]


def test_what_another_budget_left_in_the_journal_is_not_told(tmp_path, monkeypatch):
    expected = calibrate(tmp_path / "whole", keep=[0.3])
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("iwp_export.calibrator.calibration.write_page", lambda *arguments: 1 / 0)
        calibrate(tmp_path / "again", keep=[0.3, 0.111])
    assert (tmp_path / "again" / "out.json.progress").exists()
    assert calibrate(tmp_path / "again", keep=[0.3]) == expected


def test_one_token_is_left_where_a_sample_has_two_images(tmp_path):
    """Noise in two images, one of them with other pixels: whatever the first sample's prompt is like."""
    lines = ['{"image": "000.png", "prompt": "how many digits are there ?"}']
    lines += ['{"images": ["000.png", "noise.png"], "prompt": "how many digits are there ?"}']
    shutil.copy(SAMPLES / "000.png", tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (300, 40, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    (tmp_path / "asked.jsonl").write_text("\n".join(lines))
    settings = CalibrationSettings(tmp_path / "asked.jsonl", layers=[4])
    plan = plan_calibration("tiny-llava", tmp_path / "o.json", settings)
    calibration = Calibration(plan)
    scorer = calibration._scorer
    blind = PruningSettings(layer=plan.legal_layers[0], keep=LEAST_KEEP).with_changes(importance="random")
    for question in plan.samples.questions:
        prepared = scorer.prepare(question)
        assert blind.num_keep(int(prepared.visual.sum())) == 1
    calibration.measured.run("blind", [blind], 2)
    assert calibration.measured.runs == 2  # at its own ratio, whatever the budget's are


def test_a_sample_that_cannot_be_asked_is_refused_before_the_search(tmp_path, monkeypatch):
    for number in range(3):
        shutil.copy(SAMPLES / f"00{number}.png", tmp_path)
    (tmp_path / "001.png").write_bytes((SAMPLES / "001.png").read_bytes()[:99])
    monkeypatch.setattr(Scorer, "score", lambda *arguments: pytest.fail("the search began"))
    with pytest.raises(RequestError, match=r"question about 001\.png: cannot read the image"):
        calibrate(tmp_path / "out", data=tmp_path, samples=96)
    assert not (tmp_path / "out").exists()


def test_the_warning_of_the_samples_ends_the_verdict(tmp_path):
    recipe = calibrate(tmp_path, data=SAMPLES, samples=1, keep=[0.5])
    assert recipe.verdict[-1].startswith("No prompts are given") and recipe.verdict[-1].endswith("costs.")
    assert not recipe.data.answers and {figures.accuracy for figures in recipe.candidates} == {None}


@pytest.mark.slow
def test_every_sample_that_is_asked_for_is_used_and_those_beyond_judge(tmp_path, monkeypatch):
    """More than the 96 of the default: the last round has them all, and the digest is of the data."""
    questions = [json.loads(line) for line in (SAMPLES / "questions.jsonl").read_text().splitlines()][:5]
    lines = [json.dumps({**each, "image": str(SAMPLES / each["image"])}) for each in questions for _ in range(26)]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr("iwp_export.calibrator.search.VARIANTS", VARIANTS[:1])
    options = {"data": tmp_path / "asked.jsonl", "keep": [0.3], "layers": [4]}
    whole = calibrate(tmp_path / "whole", samples=130, **options)
    assert whole.search.rungs == (8, 24, 96, 130) and whole.data.samples == 130
    assert {figures.samples for figures in whole.candidates} == {130}
    assert "of the samples that chose it" in whole.verdict[0]
    part = calibrate(tmp_path / "part", samples=100, **options)
    assert part.search.rungs == (8, 24, 96, 100) and part.data.digest == whole.data.digest
    assert "On 30 samples that took no part in the choice" in part.verdict[0]


def test_the_seed_is_of_the_samples(tmp_path):
    first, same, other = (
        calibrate(tmp_path / str(n), samples=1, keep=[0.3], seed=seed) for n, seed in enumerate((0, 0, 5))
    )
    assert first == same and first.data.digest == other.data.digest and first.candidates != other.candidates
    assert dataclasses.replace(other.search, seed=0, keeps=()) == dataclasses.replace(first.search, keeps=())


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [0.2, 0.05])
def test_what_a_drop_chose_passes_validation_on_its_data_or_the_verdict_says_why_not(tmp_path, monkeypatch, allowed):
    """24 samples may show a drop of 20 %, where 16 are needed, and cannot show one of 5 %, where 73 are."""
    monkeypatch.setattr("iwp_export.calibrator.search.VARIANTS", ({"select": "coverage"},))
    recipe = calibrate(tmp_path, samples=24, max_drop=allowed)
    api.export("tiny-llava", tmp_path / "o.bundle", recipe=tmp_path / "out.json", dtype="float32")
    asked = [
        {"image": str(each.images[0]), "prompt": each.prompt, "answer": each.answer}
        for each in read_samples(SAMPLES / "questions.jsonl", most=24).questions[:24]
    ]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    report = api.validate(tmp_path / "o.bundle", data=tmp_path / "asked.jsonl", against="none", max_drop=allowed)
    (gate,) = [each for each in report.gates if each.name == "max-drop"]
    assert gate.passed == (allowed == 0.2)
    says = "`validate --max-drop` passes" if gate.passed else gate.remedy
    assert any(gate.measured in line and gate.limit in line and says in line for line in recipe.verdict)
