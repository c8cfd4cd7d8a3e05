"""Reading a processor folder: tokenizer, image processor and chat template, with none of the folder's own code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iwp_export.errors import BundleError
from iwp_export.runtime.image_limits import check_settings

TEMPLATE = "chat_template.jinja"
OLD_TEMPLATE = "chat_template.json"
NAMED_TEMPLATES = "additional_chat_templates"
"""Folder with a template NAME.jinja for each further purpose."""

ERROR_CHARACTERS = 300
"""Of a library's own message that an error repeats."""


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer, by transformers' own code alone.

    Raises:
        BundleError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, folder)


def load_image_processor(folder: Path, most_pixels: int) -> Any:
    """The image processor, by transformers' own code alone, in its PIL form: the same pixels on every machine.

    Args:
        folder: the processor folder.
        most_pixels: of an image, see `image_limits`.

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
    reason = " ".join(str(error).split()).replace(str(folder), "this folder")
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
