"""Questions about images, read from a file of JSON lines. Needs no torch.

    {"image": "000.png", "prompt": "what is the red digit ?", "answer": "7", "kind": "digit"}
    {"images": ["a.jpg", "b.jpg"], "prompt": "What differs?"}
    {"image": "c.jpg", "prompt": "What is on the desk?", "answers": ["laptop", "a laptop", "computer"]}

One question a line, with one image or several. Paths are relative to the file. `answers` has several right answers, or
what each of several annotators said; it stands in the place of `answer`. Both and `kind` may be left out, and further
fields are kept as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from iwp_export.errors import DataError, os_reason

OPTIONAL = ("answer", "kind")

SHIPPED = {"tiny-llava": Path(__file__).parent / "assets" / "tiny_llava_samples" / "questions.jsonl"}
"""Samples that ship with the package, by the name of the model."""
MAX_NEW_TOKENS = 16
"""Of an answer, unless the caller says otherwise."""


@dataclass(frozen=True)
class Question:
    """A question about images.

    Attributes:
        images: files, one at least.
        prompt: the user's text.
        answer: the right answer, where the data has one; of several, the one that is given most often.
        kind: what is asked, where questions differ in that; figures are given for each kind.
        fields: whatever else its line holds.
        answers: all right answers, or what each annotator said, where the data has `answers`.
    """

    images: tuple[Path, ...]
    prompt: str
    answer: str | None = None
    kind: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    answers: tuple[str, ...] = ()

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every right answer, as often as the data gives it; empty where the data has none."""
        return self.answers or (() if self.answer is None else (self.answer,))


def read_questions(path: Path | str) -> Iterator[Question]:
    """The questions of a file, read line by line; blank lines are passed over.

    Raises:
        DataError: the file cannot be read or has no question, or a line (the error says which) is not one or names
            an image that is not there.
    """
    path = Path(path)
    found = False
    try:
        lines = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read questions from {path}: {error.strerror}") from error
    with lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                question = _question(line, path.parent)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: {error}") from error
            found = True
            yield question
    if not found:
        raise DataError(f"{path} has no questions")


def _question(line: bytes, folder: Path) -> Question:
    """The question that a line holds.

    Raises:
        ValueError: it holds none.
    """
    fields = _object(line)
    prompt = fields.pop("prompt", None)
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"`prompt` must be a text that is not empty, got {prompt!r}")
    images = tuple(folder / name for name in _image_names(fields))
    for image in images:
        if not image.is_file():
            raise ValueError(f"there is no image {image}")
    texts = {name: fields.pop(name, None) for name in OPTIONAL}
    for name, text in texts.items():
        if not isinstance(text, str | None):
            raise ValueError(f"`{name}` must be a text, got {text!r}")
    answers = _answers(fields)
    if answers:
        if texts["answer"] is not None:
            raise ValueError("give either `answer` or `answers`")
        texts["answer"] = Counter(answers).most_common(1)[0][0]
    return Question(images, prompt, fields=fields, answers=answers, **texts)


def _answers(fields: dict[str, Any]) -> tuple[str, ...]:
    """The right answers of a question that has several, taken out of its fields."""
    if "answers" not in fields:
        return ()
    value = fields.pop("answers")
    if not isinstance(value, list) or not value or not all(isinstance(answer, str) for answer in value):
        raise ValueError(f"`answers` must be a list of one text or more, got {value!r}")
    return tuple(value)


def _object(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line.decode("utf-8-sig").rstrip())
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(entry, dict):
        raise ValueError(f"a question is a JSON object, got a {type(entry).__name__}")
    return entry


def _image_names(fields: dict[str, Any]) -> list[str]:
    """The paths of a question, taken out of its fields."""
    given = [name for name in ("image", "images") if name in fields]
    if len(given) != 1:
        raise ValueError("give either `image`, a path, or `images`, a list of paths")
    value = fields.pop(given[0])
    names = [value] if given == ["image"] else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        wanted = "a path" if given == ["image"] else "a list of one path or more"
        raise ValueError(f"`{given[0]}` must be {wanted}, got {value!r}")
    return names


def digest_of(questions: Sequence[Question]) -> str:
    """SHA-256 of prompts, answers and the bytes of image files, in order.

    Raises:
        DataError: an image cannot be read.
    """
    total = hashlib.sha256()
    files: dict[Path, bytes] = {}
    for question in questions:
        for text in (question.prompt, question.answer, *question.answers):
            total.update(hashlib.sha256(b"" if text is None else b"=" + text.encode("utf-8", "replace")).digest())
        for image in question.images:
            if image not in files:
                files[image] = hashlib.sha256(_content(image)).digest()
            total.update(files[image])
    return total.hexdigest()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the image {path}: {os_reason(error)}") from error


_PACKAGED = Path(__file__).parent / "assets" / "tiny_llava_heldout"
HELDOUT = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1] / "calibration" / "tiny_llava" / "heldout"
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
        data: a file, see `iwp_export.questions`; None for what ships for the model.
        model: the model's name in a manifest.
        limit: only the first so many.

    Raises:
        DataError: nothing ships for the model, or see `read_questions`.
    """
    name, file = (data.name, data) if data is not None else OWN.get(model, ("", None))
    if file is None:
        raise DataError(f"no questions ship for {model}: give a file of JSON lines", options=("data",))
    return DataSet(name, tuple(islice(read_questions(file), limit)))
