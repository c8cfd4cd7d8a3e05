"""One artefact and its checkpoint for the tests of parity."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from calibration.tiny_llava import HELDOUT
from iwp_export.parity.checkpoint import CheckpointReference
from iwp_export.questions import Question, read_questions
from iwp_export.runtime.pipeline import Pipeline


@pytest.fixture(scope="package")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return Pipeline.open(tiny_bundle, threads=1)


@pytest.fixture(scope="package")
def checkpoint(pipeline: Pipeline) -> CheckpointReference:
    return CheckpointReference(pipeline.manifest)


@pytest.fixture(scope="package")
def questions() -> list[Question]:
    """Of three images, which have three questions each."""
    return list(islice(read_questions(HELDOUT), 0, 9, 3))
