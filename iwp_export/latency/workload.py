"""What a bench asks: the caller's images and prompt, a file of questions, or what ships with the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from iwp_export.bundle.manifest import Manifest
from iwp_export.errors import DataError, SettingsError
from iwp_export.questions import SHIPPED, read_questions
from iwp_export.runtime.images import ImageSource

QUESTIONS = 7
"""Of a file, unless the caller says otherwise: several, so that no single image decides, and an odd number, so that
each meets both orders of a pair."""
PROMPT = "What is in the picture?"
CAMERA = (480, 640, 3)
"""Height and width of a camera's picture, for models that ship no samples."""


@dataclass(frozen=True)
class Ask:
    """One request: images and a prompt."""

    images: tuple[ImageSource, ...]
    prompt: str


@dataclass(frozen=True)
class Asks:
    """Requests that are made in turn, and in words where they are from."""

    requests: tuple[Ask, ...]
    source: str


def choose_asks(
    manifest: Manifest,
    images: Sequence[ImageSource] = (),
    prompt: str | None = None,
    data: Path | str | None = None,
    limit: int = QUESTIONS,
) -> Asks:
    """The requests of a bench.

    Args:
        manifest: the artefact's, whose model may have samples of its own.
        images, prompt: one request.
        data: a file of questions, see `iwp_export.questions`.
        limit: of the file, the first so many.

    Raises:
        DataError: a file and images or a prompt are given, or the file cannot be read.
        SettingsError: the limit is below 1.
    """
    if limit < 1:
        raise SettingsError(f"limit must be 1 or more, got {limit}", options=("limit",))
    if data is not None and (images or prompt is not None):
        raise DataError("questions come from a file or are images and a prompt, not both", options=("data", "images"))
    shipped = SHIPPED.get(manifest.model.name, {}).get("samples")
    if data is None and not images and prompt is None and shipped is not None:
        asked = _read(shipped, limit)
        return Asks(asked, f"the first {len(asked)} samples of {manifest.model.name}")
    if data is not None:
        asked = _read(Path(data), limit)
        return Asks(asked, f"the first {len(asked)} questions of {Path(data).name}")
    words = PROMPT if prompt is None else prompt
    if images:
        return Asks((Ask(tuple(images), words),), f"{len(images)} image(s) and a prompt as given")
    height, width, _ = CAMERA
    noise = np.random.default_rng(0).integers(0, 256, CAMERA, np.uint8)
    return Asks((Ask((noise,), words),), f"a synthetic image of {width} x {height} pixels, noise; none was given")


def _read(path: Path, limit: int) -> tuple[Ask, ...]:
    return tuple(Ask(question.images, question.prompt) for question in islice(read_questions(path), limit))
