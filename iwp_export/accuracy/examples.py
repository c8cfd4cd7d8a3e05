"""A few questions to look at: what was answered with and without pruning, and which visual tokens stayed."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from iwp_export.accuracy.figures import Accuracy, AtKeep, Example, KeptView
from iwp_export.bundle.schema import CONTROL
from iwp_export.models.common.family import Picture, View
from iwp_export.questions import Question
from iwp_export.runtime.drawing import draw_kept
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.result import Result

EXAMPLES = 4
SIDE = 240
"""Pixels of the longer side of a stored view; several views of an example share the area of one."""
JPEG_QUALITY = 80
TEXT_LENGTH = 400
"""Characters of a stored prompt or answer."""


def choose_examples(
    accuracy: Accuracy, pipeline: Pipeline, questions: Sequence[Question], unpruned: Sequence[str]
) -> tuple[Example, ...]:
    """Asks a few questions again at the first of the ratios that ship: those of which the score or answer changed.

    Raises:
        RequestError: a question cannot be asked.
    """
    found = accuracy.shipped[0]
    order = sorted(range(len(questions)), key=lambda number: _rank(accuracy, found, number))
    made: list[Example] = []
    shown: set[tuple[Path, ...]] = set()
    for number in order:
        if len(made) == EXAMPLES:
            break
        if found.same[number] and questions[number].images in shown:  # the same picture again shows nothing new
            continue
        shown.add(questions[number].images)
        question = questions[number]
        result = pipeline(
            list(question.images), question.prompt, max_new_tokens=accuracy.max_new_tokens, keep=found.keep
        )
        made.append(
            Example(
                number=number + 1,
                images=tuple(one_line(image.name) for image in question.images),
                prompt=one_line(question.prompt),
                right=tuple(dict.fromkeys(map(one_line, question.accepted))),
                unpruned=one_line(unpruned[number]),
                pruned=one_line(result.text),
                keep=found.keep,
                views=views_of(result),
            )
        )
    return tuple(made)


def _rank(accuracy: Accuracy, found: AtKeep, number: int) -> tuple[float, bool]:
    """The most lost first, then other changes of the answer, then the rest as they come."""
    change = found.scores[number] - accuracy.unpruned.scores[number] if found.scores else 0.0
    return min(change, 0.0), found.same[number]


def views_of(result: Result) -> tuple[KeptView, ...]:
    """The views of an answer's images, reduced, with the cells that stayed."""
    count = sum(len(picture.views) for picture in result.pictures)
    side = max(1, round(SIDE / math.sqrt(max(count, 1))))
    made = []
    for picture, kept in zip(result.pictures, result.kept, strict=True):
        for view in picture.views:
            rows, columns = view.tokens.shape
            cells = np.flatnonzero(np.isin(view.tokens, kept))
            made.append(KeptView(_jpeg(view.seen, side), rows, columns, tuple(cells.tolist())))
    return tuple(made)


def draw(view: KeptView, min_side: int) -> Image.Image:
    """A stored view with the tokens that were dropped dimmed, see `runtime.drawing.draw_kept`.

    Raises:
        OSError: its image is none.
    """
    seen = np.asarray(Image.open(BytesIO(base64.b64decode(view.jpeg))).convert("RGB"))
    tokens = np.arange(view.rows * view.columns).reshape(view.rows, view.columns)
    return draw_kept(Picture({}, tokens.size, (View(seen, tokens),)), view.kept, min_side)


def _jpeg(seen: np.ndarray, side: int) -> str:
    image = Image.fromarray(seen)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def one_line(text: str) -> str:
    """A text without line ends and control characters, which a report cannot hold, and not longer than it shows."""
    plain = CONTROL.sub(" ", text)
    return plain if len(plain) <= TEXT_LENGTH else f"{plain[: TEXT_LENGTH - 1]}…"
