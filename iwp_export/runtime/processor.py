"""Preprocessing and chat template from the bundle's own processor folder. Needs no torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iwp_export.backends.session import Ints
from iwp_export.bundle.manifest import VisionInfo
from iwp_export.errors import BundleError, RequestError, in_one_line
from iwp_export.models.common.family import Array, Colours, Family, Picture
from iwp_export.runtime.images import ImageSource, check_image, check_settings, load_image, most_pixels
from iwp_export.runtime.template import ChatTemplate, Message


@dataclass(frozen=True, eq=False)
class Prompt:
    """A conversation as a model takes it: token ids int64 [S], one for each visual token, and its pictures."""

    token_ids: Ints
    pictures: tuple[Picture, ...]


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
        family.check_processor(self._images, vision)
        self.image_token = self._find_image_token(folder)

    def _find_image_token(self, folder: Path) -> str:
        """The word whose id is the model's image token.

        Raises:
            BundleError: it is beyond the tokenizer, or another than the processor's files name.
        """
        wanted, tokenizer = self._vision.image_token_id, self.tokenizer
        config = folder / "processor_config.json"
        named = getattr(tokenizer, "image_token", None)
        named = (_read_json(config).get("image_token") if config.is_file() else None) or named or "<image>"
        own = tokenizer.get_vocab().get(str(named))
        found = tokenizer.convert_ids_to_tokens(wanted) if 0 <= wanted < len(tokenizer) else None
        others = (None, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
        if found in others or own not in (None, wanted):
            raise BundleError(
                f"image_token_index is {wanted}, which is {f'{found} in' if found else 'beyond'} the tokenizer of "
                f"{folder}; {named} has {'no id there' if own is None else f'id {own}'}"
            )
        return str(found)

    def count_images(self, text: str) -> int:
        """Number of image placeholders in a text."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return list(ids).count(self._vision.image_token_id)

    def ask(self, messages: Sequence[Message], media: Sequence[ImageSource | Picture]) -> Prompt:
        """A conversation and its images, or pictures that were made of them earlier, as a prompt.

        Raises:
            RequestError: see `image`, `render` and `token_ids`.
        """
        pictures = tuple(each if isinstance(each, Picture) else self.image(each) for each in media)
        return Prompt(self.token_ids(self.render(messages), pictures), pictures)

    def ask_once(self, text: str, media: Sequence[ImageSource | Picture]) -> Prompt:
        """One user's turn as a prompt: its images, then its text. See `ask`."""
        return self.ask([user_message(text, len(media))], media)

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
            name, found = self.image_token, int(image.sum())
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
        RequestError: the prompt is no text, or holds half of a character, as bytes that are not UTF-8 become on a
            command line.
    """
    if not isinstance(prompt, str):
        raise RequestError(f"a prompt is a text, got {type(prompt).__name__}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"the prompt is not valid UTF-8 at character {error.start}") from error
    images = [{"type": "image"}] * num_images
    return {"role": "user", "content": [*images, {"type": "text", "text": prompt}]}


def assistant_message(text: str) -> Message:
    """A turn of the model."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


TOKENIZER = "tokenizer.json"
TEMPLATE = "chat_template.jinja"
OLD_TEMPLATE = "chat_template.json"
NAMED_TEMPLATES = "additional_chat_templates"
"""Folder with a template NAME.jinja for each further purpose."""

ERROR_CHARACTERS = 300
"""Of a library's own message that an error repeats."""


SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer, by transformers' own code alone.

    Raises:
        BundleError: it cannot be loaded; the error names packages that its files need.
    """
    from transformers import AutoTokenizer

    files = [folder / name for name in SENTENCEPIECE_FILES if (folder / name).is_file()]
    if files and not (folder / TOKENIZER).is_file():
        is_tiktoken = re.match(rb"[A-Za-z0-9+/]+=* \d+\n", files[0].read_bytes())  # lines of base64 and a number
        needed = {"tiktoken"} if is_tiktoken else {"sentencepiece", "protobuf"}
        if missing := sorted(needed - {package.name for package in metadata.distributions()}):
            raise BundleError(
                f"the tokenizer in {folder} is {files[0].name} without {TOKENIZER}, and reading that needs a package: "
                f"pip install {' '.join(missing)}"
            )
    return _load(AutoTokenizer, folder)


def load_image_processor(folder: Path, most_pixels: int) -> Any:
    """The image processor, by transformers' own code alone, in its PIL form: the same pixels on every machine.

    Raises:
        BundleError: it cannot be loaded, or would make images larger than that.
    """
    from transformers import AutoImageProcessor

    images = _load(AutoImageProcessor, folder, backend="pil")
    try:
        check_settings(images, most_pixels)
    except BundleError as error:
        raise BundleError(f"cannot use the processor in {folder}: {error}") from error
    except Exception as error:
        raise _unreadable(folder, error) from error
    return images


def _load(auto: Any, folder: Path, **options: Any) -> Any:
    """Load by transformers' own code alone."""
    if not folder.is_dir():  # transformers would look for a repository of this name
        raise BundleError(f"cannot load the processor in {folder}: there is no such folder")
    # Without torch, importing transformers prints advice to install it; here its absence is intended.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        # False, not left out: transformers would ask on the terminal whether to run the folder's code.
        return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # damaged files make the libraries below fail in ways of their own
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> BundleError:
    reason = in_one_line(error).replace(str(folder), "this folder")
    if "trust_remote_code" in reason:
        reason = "it needs code of its own, which is never run"
    elif broken := [file.name for file in sorted(folder.glob("*.json")) if not _is_json(file)]:
        reason = f"{broken[0]} is not JSON"
    elif not isinstance(error, OSError | ValueError):
        reason = f"{type(error).__name__}: {reason}"
    if len(reason) > ERROR_CHARACTERS:
        reason = f"{reason[:ERROR_CHARACTERS]}..."
    return BundleError(f"cannot load the processor in {folder}: {reason}")


def _is_json(file: Path) -> bool:
    try:
        _read_json(file)
    except (OSError, ValueError, RecursionError):
        return False
    return True


def find_template(folder: Path, tokenizer: Any) -> tuple[str | None, str]:
    """The chat template that transformers' `AutoProcessor` takes; where it has none, the tokenizer's.

    A template in processor_config.json comes before the files chat_template.json and chat_template.jinja, in this
    order; further ones lie in `additional_chat_templates`. Of several, the one called `default` counts.

    Returns:
        The template, and why there is none.

    Raises:
        BundleError: the files contradict each other or are damaged.
    """
    try:
        found = _processor_template(folder) or tokenizer.chat_template
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"cannot read the chat template in {folder}: {type(error).__name__}: {error}") from error
    if isinstance(found, Mapping):
        names = ", ".join(map(str, found))
        found, reason = found.get("default"), f"its chat templates are called {names}, and none is called default"
    else:
        reason = "it has no chat template"
    if not found:
        return None, reason
    if not isinstance(found, str):
        raise BundleError(f"the chat template in {folder} is not a text but {type(found).__name__}")
    return found, ""


def template_file(folder: Path) -> str:
    """The file in which a new chat template would count."""
    config = folder / "processor_config.json"
    if config.is_file() and _read_json(config).get("chat_template") is not None:
        return config.name
    return OLD_TEMPLATE if (folder / OLD_TEMPLATE).is_file() else TEMPLATE


def _processor_template(folder: Path) -> Any:
    """As `ProcessorMixin.get_processor_dict` finds it: a template, or templates by name."""
    named = {file.stem: file for file in sorted((folder / NAMED_TEMPLATES).glob("*.jinja"))}
    old, new = folder / OLD_TEMPLATE, folder / TEMPLATE
    if old.is_file():
        templates: Any = _read_json(old)["chat_template"]
        if named:
            raise BundleError(
                f"{folder} has {OLD_TEMPLATE} and {NAMED_TEMPLATES}, which transformers refuses: "
                f"move the template of {OLD_TEMPLATE} to {TEMPLATE}"
            )
    else:
        templates = {name: file.read_text(encoding="utf-8") for name, file in named.items()}
        if new.is_file():
            templates["default"] = new.read_text(encoding="utf-8")
    config = folder / "processor_config.json"
    own = _read_json(config).get("chat_template") if config.is_file() else None
    return templates if own is None else own


def _read_json(file: Path) -> dict[str, Any]:
    data = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f"{file.name} is not an object")
    return data
