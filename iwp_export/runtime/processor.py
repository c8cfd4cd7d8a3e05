"""Preprocessing and chat template from the bundle's own processor folder. Needs no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iwp_export.backends.session import Ints
from iwp_export.bundle.manifest import VisionInfo
from iwp_export.errors import BundleError, RequestError
from iwp_export.models.common.family import Family
from iwp_export.models.common.picture import Array, Colours, Picture
from iwp_export.runtime.images import ImageSource, load_image

Message = Mapping[str, Any]
"""A turn as chat templates take it: `role`, and `content` as a list of parts `{"type": "image" | "text", ...}`."""


class Processor:
    """The checkpoint's tokenizer, image processor and chat template.

    Args:
        folder: the bundle's processor folder.
        vision: how images become visual tokens.
        family: the model's.

    Raises:
        BundleError: the folder cannot be read, or its image token is not the model's.
    """

    def __init__(self, folder: Path, vision: VisionInfo, family: Family) -> None:
        # Without torch, importing transformers prints advice to install it; here its absence is intended.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import AutoImageProcessor, AutoTokenizer

        # Not AutoProcessor: for some families it needs torchvision, and only its two parts are of use here. The PIL
        # back end gives the same pixels on every machine.
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._images = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise BundleError(f"cannot load the processor in {folder}: {str(error).splitlines()[0]}") from error
        self._template = _chat_template(folder, self.tokenizer)
        self._vision, self._family = vision, family
        if vision.image_token_id >= len(self.tokenizer):
            raise BundleError(f"image token {vision.image_token_id} is beyond the tokenizer of {folder}")

    def image(self, source: ImageSource) -> Picture:
        """Load, resize and normalise an image.

        Raises:
            RequestError: the image cannot be read, or its pixels do not fit the model.
        """
        image = load_image(source)
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
            RequestError: the bundle has no chat template, or the template refuses the messages.
        """
        if not self._template:
            raise RequestError("this bundle has no chat template: build the token ids yourself and use generate_ids")
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), chat_template=self._template, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise RequestError(f"the chat template refuses the conversation: {error}") from error
        return str(text)

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
    """A user's turn: its images, then its text."""
    images = [{"type": "image"}] * num_images
    return {"role": "user", "content": [*images, {"type": "text", "text": prompt}]}


def assistant_message(text: str) -> Message:
    """A turn of the model."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _chat_template(folder: Path, tokenizer: Any) -> str | None:
    """The template of the tokenizer, or the one that older checkpoints keep for the processor alone."""
    file = folder / "chat_template.json"
    if not tokenizer.chat_template and file.exists():
        try:
            return str(json.loads(file.read_text(encoding="utf-8"))["chat_template"])
        except (ValueError, KeyError) as error:
            raise BundleError(f"{file} holds no chat template ({error})") from error
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template
