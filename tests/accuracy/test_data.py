"""Sets of questions: what ships, and the user's own."""

from __future__ import annotations

import pytest

from calibration.tiny_llava import HELDOUT as IN_CHECKOUT
from iwp_export.errors import DataError
from iwp_export.questions import SHIPPED, digest_of, open_data, read_questions


def test_tiny_llava_has_held_out_questions_of_its_own() -> None:
    own = open_data(None, "tiny-llava")
    assert len(own.questions) == 600 and all(question.answer for question in own.questions)
    assert own.questions == tuple(read_questions(IN_CHECKOUT))
    assert open_data(None, "tiny-llava", 7).questions == own.questions[:7]
    calibrated = {digest_of([question])[:16] for question in read_questions(SHIPPED["tiny-llava"])}
    assert not calibrated & {digest_of([question])[:16] for question in own.questions[:96]}


def test_a_file_has_its_own_name() -> None:
    assert open_data(IN_CHECKOUT, "tiny-llava", 2).name == "questions.jsonl"


def test_a_model_without_questions_of_its_own_needs_a_file() -> None:
    with pytest.raises(DataError, match="no questions ship for my-llava: give a file") as refused:
        open_data(None, "my-llava")
    assert refused.value.options == ("data",)
