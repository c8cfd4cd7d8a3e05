"""What is asked in a comparison: a text and images, which travel with a recording."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from iwp_export.bundle.schema import CONTROL
from iwp_export.errors import DataError, RequestError, os_reason
from iwp_export.questions import Question
from iwp_export.runtime.images import load_image
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.processor import Prompt


@dataclass(frozen=True)
class Sample:
    """A question.

    Attributes:
        name: what to call it in a report: its number and its first image.
        prompt: the user's text.
        images: content of its image files.
    """

    name: str
    prompt: str
    images: tuple[bytes, ...]

    def open_images(self) -> list[Image.Image]:
        """The images.

        Raises:
            RequestError: one cannot be read.
        """
        found = []
        for number, content in enumerate(self.images, 1):
            try:
                found.append(load_image(Image.open(io.BytesIO(content))))
            except RequestError as error:
                raise RequestError(f"image {number} of sample {self.name}: {error}") from error
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                reason = "it is none" if isinstance(error, UnidentifiedImageError) else type(error).__name__
                raise RequestError(f"cannot read image {number} of sample {self.name}: {reason}") from error
        return found


def samples_of(questions: Sequence[Question]) -> list[Sample]:
    """Questions with the content of their images.

    Raises:
        DataError: an image cannot be read.
    """
    found = []
    for number, question in enumerate(questions, 1):
        try:
            images = tuple(path.read_bytes() for path in question.images)
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {os_reason(error)}") from error
        names = CONTROL.sub("?", ", ".join(path.name for path in question.images))
        found.append(Sample(f"{number} ({names})", question.prompt, images))
    return found


def read_prompt(pipeline: Pipeline, sample: Sample) -> Prompt:
    """A sample by an artefact's own processor and chat template.

    Raises:
        RequestError: it cannot be asked.
    """
    return pipeline.processor.ask_once(sample.prompt, sample.open_images())
