"""Questions about images, read from a file of JSON lines. Needs no torch.

    {"image": "000.png", "prompt": "what is the red digit ?", "answer": "7", "kind": "digit"}
    {"images": ["a.jpg", "b.jpg"], "prompt": "What differs?"}

One question a line, with one image or several. Paths are relative to the file; `answer` and `kind` may be left out, and
further fields are kept as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iwp_export.errors import DataError

OPTIONAL = ("answer", "kind")

MAX_NEW_TOKENS = 16
"""Of an answer, unless the caller says otherwise."""


@dataclass(frozen=True)
class Question:
    """A question about images.

    Attributes:
        images: files, one at least.
        prompt: the user's text.
        answer: the right answer, where the data has one.
        kind: what is asked, where questions differ in that; figures are given for each kind.
        fields: whatever else its line holds.
    """

    images: tuple[Path, ...]
    prompt: str
    answer: str | None = None
    kind: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


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
    return Question(images, prompt, fields=fields, **texts)


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
