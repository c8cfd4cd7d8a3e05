"""Questions about images, read from a file of JSON lines. Needs no torch.

    {"image": "000.png", "prompt": "what is the red digit ?", "answer": "7", "kind": "digit"}
    {"images": ["a.jpg", "b.jpg"], "prompt": "What differs?"}
    {"image": "c.jpg", "prompt": "What is on the desk?", "answers": ["laptop", "a laptop", "computer"]}

One question a line. Paths are relative to the file; `answers` has several right answers. Answers and `kind` may be left
out, and further fields are passed over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from iwp_export.errors import DataError, os_reason

MAX_NEW_TOKENS = 16
"""Of an answer, unless the caller says otherwise."""


@dataclass(frozen=True)
class Question:
    """A question about images.

    Attributes:
        images: files, one at least.
        prompt: the user's text.
        answers: the right answers, each as good as the others; empty where the data has none.
        kind: what is asked, where questions differ in that; figures are given for each kind.
    """

    images: tuple[Path, ...]
    prompt: str
    answers: tuple[str, ...] = ()
    kind: str | None = None

    @property
    def answer(self) -> str | None:
        """The first right answer, where the data has one."""
        return self.answers[0] if self.answers else None


def read_questions(path: Path | str) -> Iterator[Question]:
    """The questions of a file, read line by line; blank lines are passed over.

    Raises:
        DataError: the file cannot be read or has no question, or a line (the error says which) is not one or names
            an image that is not there.
    """
    path, number, found = Path(path), 0, False
    try:
        with path.open("rb") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    found = True
                    yield _question(line, path.parent)
    except OSError as error:
        raise DataError(f"cannot read questions from {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}, line {number}: {error}") from error
    if not found:
        raise DataError(f"{path} has no questions")


def _question(line: bytes, folder: Path) -> Question:
    """The question that a line holds; ValueError if it holds none."""
    try:
        fields = json.loads(line.decode("utf-8-sig").rstrip())
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(fields, dict):
        raise ValueError(f"a question is a JSON object, got a {type(fields).__name__}")
    prompt, kind = fields.get("prompt"), fields.get("kind")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"`prompt` must be a text that is not empty, got {prompt!r}")
    if not isinstance(kind, str | None):
        raise ValueError(f"`kind` must be a text, got {kind!r}")
    images = tuple(folder / name for name in _texts(fields, "image", "a path"))
    if not images:
        raise ValueError("give either `image`, a path, or `images`, a list of paths")
    for image in images:
        if not image.is_file():
            raise ValueError(f"there is no image {image}")
    return Question(images, prompt, _texts(fields, "answer", "a text"), kind)


def _texts(fields: dict[str, Any], name: str, noun: str) -> tuple[str, ...]:
    """What a line gives as one text, or under the name's plural as a list of them."""
    one, several = fields.get(name), fields.get(f"{name}s")
    if one is not None and several is not None:
        raise ValueError(f"give either `{name}`, {noun}, or `{name}s`, a list of {noun[2:]}s")
    if isinstance(one, str):
        return (one,)
    if isinstance(several, list) and several and all(isinstance(text, str) for text in several):
        return tuple(several)
    if one is not None:
        raise ValueError(f"`{name}` must be {noun}, got {one!r}")
    if several is not None:
        raise ValueError(f"`{name}s` must be a list of one {noun[2:]} or more, got {several!r}")
    return ()


def digest_of(questions: Sequence[Question]) -> str:
    """SHA-256 of prompts, answers and the bytes of image files, in order.

    Raises:
        DataError: an image cannot be read.
    """
    total = hashlib.sha256()
    files: dict[Path, bytes] = {}
    for question in questions:
        for text in (question.prompt, *(question.answers or (None,))):
            total.update(hashlib.sha256(b"" if text is None else b"=" + text.encode("utf-8", "replace")).digest())
        for image in question.images:
            try:
                if image not in files:
                    files[image] = hashlib.sha256(image.read_bytes()).digest()
            except OSError as error:
                raise DataError(f"cannot read the image {image}: {os_reason(error)}") from error
            total.update(files[image])
    return total.hexdigest()


_HERE, _FILE = Path(__file__).parent, "questions.jsonl"
_HELDOUT = _HERE / "assets" / "tiny_llava_heldout"
if not _HELDOUT.is_dir():  # a checkout has them where they are made
    _HELDOUT = _HERE.parent / "calibration" / "tiny_llava" / "heldout"
SHIPPED = {"tiny-llava": {"samples": _HERE / "assets" / "tiny_llava_samples" / _FILE, "heldout": _HELDOUT / _FILE}}
"""Questions that ship, by the model's name in a manifest: `samples` to calibrate and time it, `heldout` to validate."""


@dataclass(frozen=True)
class DataSet:
    """Questions with a name for people, and the file that they are the first of."""

    name: str
    questions: tuple[Question, ...]
    file: Path | None = None

    def is_of(self, digest: str | None) -> bool:
        """Whether all questions of the file have this `digest_of`."""
        return digest is not None and self.file is not None and digest_of(list(read_questions(self.file))) == digest


def open_data(data: Path | str | None, model: str, limit: int | None = None) -> DataSet:
    """Read a set of questions.

    Args:
        data: a file, see `iwp_export.questions`; None for the held-out questions that ship for the model.
        model: the model's name in a manifest.
        limit: only the first so many.

    Raises:
        DataError: nothing ships for the model, or see `read_questions`.
    """
    if data is None and model not in SHIPPED:
        raise DataError(f"no questions ship for {model}: give a file of JSON lines", options=("data",))
    file = SHIPPED[model]["heldout"] if data is None else Path(data)
    name = f"{model}'s held-out set" if data is None else file.name
    return DataSet(name, tuple(islice(read_questions(file), limit)), file)
