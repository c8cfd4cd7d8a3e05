"""The samples of a calibration: questions about images, from a file or from a folder of images."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from iwp_export.errors import DataError, os_reason
from iwp_export.questions import Question, digest_of, read_questions

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
GENERIC_PROMPTS = (
    "What is in the picture?",
    "Describe the picture in one sentence.",
    "What is in the middle of the picture?",
    "How many objects are there?",
    "What colours are there?",
    "Where was this picture taken?",
)
GENERIC_WARNING = (
    "no prompts are given, so generic ones are asked; prompts from your task show more of what pruning costs"
)


@dataclass(frozen=True)
class Samples:
    """Questions in the order in which a calibration meets them.

    Attributes:
        name: where they are from.
        questions: at most as many as were asked for.
        digest: of all questions of the data in their order there, see `digest_of`.
        warning: what is doubtful about them; empty if nothing is.
    """

    name: str
    questions: tuple[Question, ...]
    digest: str
    warning: str = ""

    @property
    def answers(self) -> bool:
        """Whether each has a right answer."""
        return all(question.answer is not None for question in self.questions)


def read_samples(data: Path, prompts: Path | None = None, *, most: int, seed: int = 0) -> Samples:
    """Read samples and draw some of them.

    Args:
        data: a file of questions, see `iwp_export.questions`; or a folder, whose images are asked about.
        prompts: for a folder: a file with a prompt a line, of which each image gets one.
        most: samples at most.
        seed: of the draw and of the order.

    Raises:
        DataError: there is nothing there, or it cannot be read; or prompts are given for a file, which has its own.
    """
    if data.is_dir():
        questions, warning = _of_folder(data, prompts)
    elif prompts is not None:
        raise DataError(f"{data} has its own prompts; prompts are for a folder of images", options=("prompts",))
    else:
        questions, warning = list(read_questions(data)), ""
    digest = digest_of(questions)
    random.Random(seed).shuffle(questions)
    return Samples(data.name or str(data), tuple(questions[:most]), digest, warning)


def _of_folder(folder: Path, prompts: Path | None) -> tuple[list[Question], str]:
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not images:
        raise DataError(f"{folder} has no images ({', '.join(SUFFIXES)})")
    lines = GENERIC_PROMPTS if prompts is None else _prompts(prompts)
    questions = [Question((image,), lines[number % len(lines)]) for number, image in enumerate(images)]
    return questions, GENERIC_WARNING if prompts is None else ""


def _prompts(path: Path) -> tuple[str, ...]:
    try:
        lines = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"cannot read prompts from {path}: {reason}", options=("prompts",)) from error
    found = tuple(line for line in lines if line)
    if not found:
        raise DataError(f"{path} has no prompts", options=("prompts",))
    return found
