"""Parity passes where a bundle is its checkpoint, for every family, and fails where it is not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.tiny_llava import HELDOUT
from iwp_export import api
from iwp_export.pruning.settings import PruningSettings
from iwp_export.runtime.model import LoadedModel
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.validate.parity import (
    Difference,
    RecordedMethod,
    compare_with_generate,
    compare_with_reference,
    encode,
    main,
)
from iwp_export.validate.questions import Question, read_questions
from iwp_export.validate.reference import Reference
from iwp_export.validate.rivals.method import Method
from tests.export.tiny import write_llava_next

SIZES = ((48, 64), (37, 300), (90, 41))


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return Pipeline.open(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def reference(pipeline: Pipeline) -> Reference:
    return Reference.of(pipeline.manifest)


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return list(islice(read_questions(HELDOUT), 4))


def test_a_bundle_is_its_checkpoint(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "parity.json"
    arguments = ["--data", str(HELDOUT), "--limit", "3", "--keep", "0.2", "--threads", "1", "-o", str(output)]
    assert main([str(tiny_bundle), *arguments]) == 0
    report = json.loads(output.read_text())
    assert report == json.loads(capsys.readouterr().out)
    entries = [report["keep 1 against transformers' generate"], *report["against the torch reference"]]
    assert [entry["keep"] for entry in entries] == [1.0, 0.2]
    for entry in entries:
        assert (entry["questions"], entry["answers_that_differ"]) == (3, 0)
        assert 0 < entry["max_logits_difference"] < 1e-3


def test_several_images_of_another_family(tmp_path: Path) -> None:
    """LLaVA-NeXT needs the images' sizes beside their pixels, and pads the tiles of several images."""
    write_llava_next(tmp_path / "next")
    images = []
    for size in SIZES:
        images.append(tmp_path / f"{size}.png")
        Image.fromarray(np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), np.uint8)).save(images[-1])
    asked = [Question((images[0],), "how many ?"), Question(tuple(images), "what is the red digit ?")]
    bundle = api.export(str(tmp_path / "next"), tmp_path / "next.bundle", PruningSettings(layer=1))
    pipeline = Pipeline.open(bundle, threads=1)
    reference = Reference.of(pipeline.manifest)
    for difference in (
        compare_with_generate(pipeline, reference, asked, 3),
        compare_with_reference(pipeline, reference, asked, 0.3, 3),
    ):
        assert difference.failures() == []
        assert difference.max_logits_difference > 0


class Tampered:
    """A session whose vision graph or logits are not the checkpoint's."""

    provider = "tampered"
    call_limits = None

    def __init__(self, session: Any, scale: float = 1.0, shift: float = 0.0) -> None:
        self._session, self._scale, self._shift = session, scale, shift

    def encode(self, inputs: Mapping[str, Any]) -> Any:
        return self._session.encode({name: array * np.float32(self._scale) for name, array in inputs.items()})

    def new_cache(self) -> Any:
        return self._session.new_cache()

    def step(self, inputs: Any, features: Sequence[Any], cache: Any) -> Any:
        output = self._session.step(inputs, features, cache)
        return replace(output, logits=output.logits + np.float32(self._shift))


def tampered(pipeline: Pipeline, **changes: float) -> Pipeline:
    session = Tampered(pipeline._model.session, **changes)
    return Pipeline(LoadedModel(pipeline.manifest, pipeline.processor, session))


def test_other_features_give_other_choices_and_answers(
    pipeline: Pipeline, reference: Reference, questions: list[Question]
) -> None:
    other = tampered(pipeline, scale=-1.0)
    whole = compare_with_generate(other, reference, questions)
    assert whole.answers_that_differ and whole.failures()
    pruned = compare_with_reference(other, reference, questions, 0.2)
    assert pruned.choices_that_differ == len(questions)
    assert pruned.max_priority_gap_of_differing_choices > 0.01
    assert "keep 0.2: a choice differs that is no tie" in pruned.failures()


def test_logits_beyond_rounding_fail(pipeline: Pipeline, reference: Reference, questions: list[Question]) -> None:
    found = compare_with_generate(tampered(pipeline, shift=0.01), reference, questions[:1])
    assert any("logits differ" in line for line in found.failures())
    again = compare_with_reference(tampered(pipeline, shift=0.01), reference, questions[:1], 0.3)
    assert again.choices_that_differ == 0
    assert any("logits differ" in line for line in again.failures())


def test_the_gap_of_the_reference_s_own_choice_is_rounding(
    pipeline: Pipeline, reference: Reference, questions: list[Question]
) -> None:
    """What the recorded inputs say about a choice that was made from them, and about its opposite."""
    recorded = RecordedMethod(Method(pipeline.manifest.pruning))
    pruned = reference.pruned(pipeline, recorded.method.settings, recorded.select)
    kept = pruned.generate_ids(*encode(pipeline, questions[0]), keep=0.3, max_new_tokens=3).kept[0]
    assert recorded.gap(kept) < 1e-5
    assert recorded.gap([i for i in range(64) if i not in kept][: len(kept)]) > 0.01


def test_a_difference_says_what_failed() -> None:
    assert Difference(0.5, 9, 1, 0, 1e-4, 1e-5).failures() == []
    assert len(Difference(0.5, 9, 0, 0, float("nan"), 0.0).failures()) == 1
    assert Difference(0.5, 9, 1, 2, 0.5, 0.1).failures() == [
        "keep 0.5: 2 of 9 answers differ",
        "keep 0.5: logits differ by 5.0e-01, more than 0.001",
        "keep 0.5: a choice differs that is no tie",
    ]


def test_a_bundle_without_its_checkpoint(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tiny_bundle), "--data", str(HELDOUT), "--limit", "1", "--checkpoint", str(tmp_path)]
    assert main(arguments) == 1
    assert "has no config.json" in capsys.readouterr().err
