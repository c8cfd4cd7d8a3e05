"""The held-out questions are balanced and reproducible."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from calibration.tiny_llava import HELDOUT
from calibration.tiny_llava.vocabulary import KINDS, WORDS
from iwp_export.questions import SHIPPED, Question, read_questions


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return list(read_questions(HELDOUT))


def test_every_kind_has_its_share(questions: list[Question]) -> None:
    counts = Counter(question.kind for question in questions)
    assert len(questions) >= 600
    assert all(counts[kind] >= 150 for kind in KINDS)
    for kind in KINDS:  # no constant answer gets far
        answers = Counter(question.answer for question in questions if question.kind == kind)
        assert max(answers.values()) < (0.5 if kind == "count" else 0.25) * counts[kind]


def test_questions_are_well_formed(questions: list[Question]) -> None:
    for question in questions:
        assert question.answer is not None
        assert {*question.prompt.split(), question.answer} <= set(WORDS)
        (path,) = question.images
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((112, 112), "RGB")


def test_the_shipped_set_is_what_the_generator_draws(questions: list[Question]) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("torch")
    from calibration.tiny_llava.make_questions import DRAWS, draw_questions

    drawn = list(islice(draw_questions(DRAWS["heldout"]), 30))
    for (line, pixels), shipped in zip(drawn, questions[:30], strict=True):
        assert shipped.images == (HELDOUT.parent / line["image"],)
        assert np.array_equal(np.asarray(Image.open(shipped.images[0])), pixels)
        assert (shipped.prompt, shipped.answer, shipped.kind) == (line["prompt"], line["answer"], line["kind"])


def test_the_samples_for_calibrations_are_of_the_training_split() -> None:
    pytest.importorskip("sklearn")
    from calibration.tiny_llava.make_questions import DRAWS, draw_questions

    samples = list(read_questions(SHIPPED["tiny-llava"]["samples"]))
    assert len(samples) == 96
    assert DRAWS["samples"].split == "train"
    for (line, pixels), shipped in zip(islice(draw_questions(DRAWS["samples"]), 10), samples[:10], strict=True):
        assert np.array_equal(np.asarray(Image.open(shipped.images[0])), pixels)
        assert (shipped.prompt, shipped.answer) == (line["prompt"], line["answer"])
