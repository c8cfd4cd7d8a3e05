"""The fixed held-out questions (needs numpy and pillow alone; `make_heldout.py` draws them)."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.tiny_llava.vocabulary import Kind

FOLDER = Path(__file__).parent / "heldout"
QUESTIONS_FILE = "questions.json"


@dataclass(frozen=True, eq=False)
class Question:
    """One question about one image.

    Attributes:
        image: pixels [112, 112, 3] (uint8).
        image_name: the image's file name; questions about the same image share it.
        question: six words between blanks.
        answer: one word.
        kind: what is asked.
        box: (left, top, right, bottom) of the asked digit in pixels; None for a count.
    """

    image: NDArray[np.uint8]
    image_name: str
    question: str
    answer: str
    kind: Kind
    box: tuple[int, int, int, int] | None


def load(folder: Path = FOLDER, limit: int | None = None) -> list[Question]:
    """Reads the held-out questions, in the order in which they were drawn.

    Args:
        folder: holds the images and `questions.json`.
        limit: read only the first so many questions; None reads all.
    """
    entries = json.loads((folder / QUESTIONS_FILE).read_text(encoding="utf-8"))
    return [
        Question(
            image=_pixels(folder / entry["image"]),
            image_name=entry["image"],
            question=entry["question"],
            answer=entry["answer"],
            kind=entry["kind"],
            box=None if entry["box"] is None else tuple(entry["box"]),
        )
        for entry in entries[:limit]
    ]


@lru_cache(maxsize=1024)
def _pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))
    pixels.flags.writeable = False  # shared by all questions about this image
    return pixels
