"""Preprocessing and chat template from the bundle's own processor folder. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from iwp_export.backends.session import Ints
from iwp_export.bundle.manifest import VisionInfo
from iwp_export.errors import BundleError, RequestError
from iwp_export.models.common.family import Family
from iwp_export.models.common.picture import Array, Colours, Picture
from iwp_export.runtime.image_limits import check_image, most_pixels
from iwp_export.runtime.images import ImageSource, load_image
from iwp_export.runtime.processor_files import find_template, load_image_processor, load_tokenizer
from iwp_export.runtime.template import ChatTemplate, Message
from iwp_export.runtime.text import check_text


class Processor:
    """The checkpoint's tokenizer, image processor and chat template.

    Attributes:
        tokenizer: transformers' own.
        no_template: why there is no chat template; empty if there is one.

    Args:
        folder: the bundle's processor folder.
        vision: how images become visual tokens.
        family: the model's.

    Raises:
        BundleError: the folder cannot be read, or its image token is not the model's.
    """

    def __init__(self, folder: Path, vision: VisionInfo, family: Family) -> None:
        # Not AutoProcessor: for some families it needs torchvision, and only its two parts are of use here.
        self.tokenizer = load_tokenizer(folder)
        self._images = load_image_processor(folder, most_pixels(vision))
        source, self.no_template = find_template(folder, self.tokenizer)
        self._template = None if source is None else ChatTemplate(source)
        self._vision, self._family = vision, family
        if not 0 <= vision.image_token_id < len(self.tokenizer):
            raise BundleError(f"image token {vision.image_token_id} is beyond the tokenizer of {folder}")

    def image(self, source: ImageSource) -> Picture:
        """Load, resize and normalise an image.

        Raises:
            RequestError: the image cannot be read, or its pixels do not fit the model.
        """
        image = load_image(source)
        check_image(self._images, image.width, image.height)
        try:
            outputs = self._images(images=[image], return_tensors="np")
        except ValueError as error:  # a line of a pixel's width has no aspect ratio to keep, for example
            raise RequestError(f"cannot preprocess an image of {image.width} x {image.height}: {error}") from error
        return self.picture(outputs)

    def picture(self, outputs: Mapping[str, Array]) -> Picture:
        """A picture from what this image processor, or one like it, returned for one image.

        Raises:
            RequestError: the arrays do not fit the model.
        """
        normalised = getattr(self._images, "do_normalize", False)
        colours = Colours(tuple(self._images.image_mean), tuple(self._images.image_std)) if normalised else Colours()
        return self._family.picture(outputs, self._vision, colours)

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the model reads it, up to where its answer begins.

        Raises:
            RequestError: the bundle has no chat template, or the template refuses the messages or takes too much.
        """
        if self._template is None:
            raise RequestError(f"this bundle takes no text: {self.no_template}. Make token ids and use generate_ids")
        return self._template.render(messages, self.tokenizer.special_tokens_map)

    def token_ids(self, text: str, pictures: Sequence[Picture]) -> Ints:
        """Token ids int64 [S] of a rendered conversation, each image placeholder repeated once per visual token.

        Raises:
            RequestError: the text has not as many placeholders as there are images.
        """
        bos = self.tokenizer.bos_token
        has_bos = bool(bos) and text.startswith(bos)  # a template may write it, and so may the tokenizer
        ids = np.asarray(self.tokenizer(text, add_special_tokens=not has_bos)["input_ids"], np.int64)
        image = ids == self._vision.image_token_id
        if image.sum() != len(pictures):
            name, found = self.tokenizer.convert_ids_to_tokens(self._vision.image_token_id), int(image.sum())
            raise RequestError(
                f"{len(pictures)} image(s) were given, but the rendered conversation has {found} placeholder(s) "
                f"{name}: a prompt must not contain {name} itself, and the chat template must place every image"
            )
        repeats = np.ones(ids.size, np.int64)
        repeats[image] = [picture.num_tokens for picture in pictures]
        return np.repeat(ids, repeats)

    def decode(self, token_ids: Sequence[int] | npt.NDArray[np.int64]) -> str:
        """Text of generated tokens, without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))


def user_message(prompt: str, num_images: int) -> Message:
    """A user's turn: its images, then its text.

    Raises:
        RequestError: the text is none that a tokenizer takes.
    """
    check_text(prompt)
    images = [{"type": "image"}] * num_images
    return {"role": "user", "content": [*images, {"type": "text", "text": prompt}]}


def assistant_message(text: str) -> Message:
    """A turn of the model."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}
