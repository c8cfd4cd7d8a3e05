"""The shipped held-out questions: balanced, reproducible, and loadable without torch."""

import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from calibration.tiny_llava.heldout import load
from calibration.tiny_llava.vocabulary import KINDS, WORDS

ROOT = Path(__file__).parents[2]


def test_every_kind_has_its_share() -> None:
    questions = load()
    counts = Counter(question.kind for question in questions)
    assert len(questions) >= 600
    assert all(counts[kind] >= 150 for kind in KINDS)
    for kind in KINDS:  # no constant answer gets far
        answers = Counter(question.answer for question in questions if question.kind == kind)
        assert max(answers.values()) < (0.5 if kind == "count" else 0.25) * counts[kind]


def test_questions_are_well_formed() -> None:
    for question in load():
        assert question.image.shape == (112, 112, 3)
        assert question.image.dtype == np.uint8
        assert {*question.question.split(), question.answer} <= set(WORDS)
        assert (question.box is None) == (question.kind == "count")


def test_limit_reads_the_first_questions() -> None:
    assert [(q.question, q.answer) for q in load(limit=4)] == [(q.question, q.answer) for q in load()[:4]]


def test_the_shipped_set_is_what_the_generator_draws() -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("torch")
    from calibration.tiny_llava.make_heldout import draw_questions

    drawn = list(islice(draw_questions(), 30))
    for ours, shipped in zip(drawn, load(limit=30), strict=True):
        assert np.array_equal(ours.image, shipped.image)
        assert (ours.image_name, ours.question, ours.answer) == (shipped.image_name, shipped.question, shipped.answer)
        assert (ours.kind, ours.box) == (shipped.kind, shipped.box)


def test_loading_needs_neither_torch_nor_scikit_learn() -> None:
    script = (
        "import sys\n"
        "from calibration.tiny_llava.heldout import load\n"
        "load(limit=3)\n"
        "print(sorted({'torch', 'sklearn', 'transformers', 'scipy'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
