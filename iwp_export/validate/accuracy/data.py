"""Sets of questions, by one interface: what ships for tiny-llava, and the user's own files."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from iwp_export.errors import DataError
from iwp_export.validate.questions import Question, read_questions

_PACKAGED = Path(__file__).parents[2] / "assets" / "tiny_llava_heldout"
HELDOUT = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[3] / "calibration" / "tiny_llava" / "heldout"
"""tiny-llava's held-out questions; a checkout has them where they are made."""
OWN = {"tiny-llava": ("tiny-llava's held-out set", HELDOUT / "questions.jsonl")}
"""Questions that ship with the package, by the model's name: what to call them, and their file."""


@dataclass(frozen=True)
class DataSet:
    """Questions with a name.

    Attributes:
        name: for words.
        questions: in their order.
    """

    name: str
    questions: tuple[Question, ...]


def open_data(data: Path | None, model: str, limit: int | None = None) -> DataSet:
    """Read a set of questions.

    Args:
        data: a file, see `iwp_export.validate.questions`; None for what ships for the model.
        model: the model's name in a manifest.
        limit: only the first so many.

    Raises:
        DataError: nothing ships for the model, or see `read_questions`.
    """
    name, file = (data.name, data) if data is not None else OWN.get(model, ("", None))
    if file is None:
        raise DataError(f"no questions ship for {model}: give a file of JSON lines", options=("data",))
    return DataSet(name, tuple(islice(read_questions(file), limit)))
