"""Preprocessing and chat template from the bundle's own processor folder. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from iwp_export.backends.session import Ints
from iwp_export.bundle.manifest import VisionInfo
from iwp_export.errors import BundleError, RequestError
from iwp_export.runtime.image_limits import check_image, most_pixels
from iwp_export.runtime.images import ImageSource, Picture, load_image, make_picture
from iwp_export.runtime.processor_files import find_template, load_image_processor, load_tokenizer
from iwp_export.runtime.template import ChatTemplate, Message


class Processor:
    """The checkpoint's tokenizer, image processor and chat template.

    Attributes:
        tokenizer: transformers' own.
        no_template: why there is no chat template; empty if there is one.

    Args:
        folder: the bundle's processor folder.
        vision: how images become visual tokens.

    Raises:
        BundleError: the folder cannot be read, or its image token is not the model's.
    """

    def __init__(self, folder: Path, vision: VisionInfo) -> None:
        # Not AutoProcessor: for some families it needs torchvision, and only its two parts are of use here.
        self._most_pixels = most_pixels(vision.image_size)
        self.tokenizer = load_tokenizer(folder)
        self._images = load_image_processor(folder, self._most_pixels)
        source, self.no_template = find_template(folder, self.tokenizer)
        self._template = None if source is None else ChatTemplate(source)
        self._vision = vision
        if not 0 <= vision.image_token_id < len(self.tokenizer):
            raise BundleError(f"image token {vision.image_token_id} is beyond the tokenizer of {folder}")

    def image(self, source: ImageSource) -> Picture:
        """Load, resize and normalise an image.

        Raises:
            RequestError: the image cannot be read, or its pixels do not fit the model.
        """
        image = load_image(source)
        check_image(self._images, image.width, image.height, self._most_pixels)
        try:
            pixels = np.asarray(self._images(images=[image], return_tensors="np")["pixel_values"])
        except ValueError as error:  # a line of a pixel's width has no aspect ratio to keep, for example
            raise RequestError(f"cannot preprocess an image of {image.width} x {image.height}: {error}") from error
        if pixels.shape[-2:] != tuple(self._vision.image_size):
            raise RequestError(f"the processor made {pixels.shape}, the model takes {self._vision.image_size} pixels")
        return self.picture(pixels)

    def picture(self, pixel_values: npt.ArrayLike) -> Picture:
        """A picture from pixels [T, 3, h, w] that this processor, or one like it, made."""
        normalised = getattr(self._images, "do_normalize", False)
        mean, std = (self._images.image_mean, self._images.image_std) if normalised else (0.0, 1.0)
        return make_picture(pixel_values, mean, std)

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the model reads it, up to where its answer begins.

        Raises:
            RequestError: the bundle has no chat template, or the template refuses the messages or takes too much.
        """
        if self._template is None:
            raise RequestError(f"this bundle takes no text: {self.no_template}. Make token ids and use generate_ids")
        return self._template.render(messages, self.tokenizer.special_tokens_map)

    def token_ids(self, text: str, num_images: int) -> Ints:
        """Token ids int64 [S] of a rendered conversation, each image placeholder repeated once per visual token.

        Raises:
            RequestError: the text has not as many placeholders as there are images.
        """
        bos = self.tokenizer.bos_token
        has_bos = bool(bos) and text.startswith(bos)  # a template may write it, and so may the tokenizer
        ids = np.asarray(self.tokenizer(text, add_special_tokens=not has_bos)["input_ids"], np.int64)
        image = ids == self._vision.image_token_id
        if image.sum() != num_images:
            name, found = self.tokenizer.convert_ids_to_tokens(self._vision.image_token_id), int(image.sum())
            raise RequestError(
                f"{num_images} image(s) were given, but the rendered conversation has {found} placeholder(s) {name}: "
                f"a prompt must not contain {name} itself, and the chat template must place every image"
            )
        return np.repeat(ids, np.where(image, self._vision.tokens_per_image, 1))

    def decode(self, token_ids: Sequence[int] | npt.NDArray[np.int64]) -> str:
        """Text of generated tokens, without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))


def user_message(prompt: str, num_images: int) -> Message:
    """A user's turn: its images, then its text."""
    images = [{"type": "image"}] * num_images
    return {"role": "user", "content": [*images, {"type": "text", "text": prompt}]}


def assistant_message(text: str) -> Message:
    """A turn of the model."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}
