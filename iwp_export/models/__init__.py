"""What is particular to each family of models, one file per Hugging Face model_type. Needs no torch to import."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from iwp_export.bundle.manifest import VisionInfo
from iwp_export.errors import CheckpointError

ALIASES: Mapping[str, str] = {
    "tiny-llava": str(Path(__file__).parent.parent / "assets" / "tiny_llava"),
    "llava": "llava-hf/llava-1.5-7b-hf",
}
"""Short names of checkpoints: a folder shipped with the package, or a Hub id."""

SUPPORTED = ("llava",)
"""The model types with a file in this package."""


class Family(Protocol):
    """The functions that a family's module defines; `model` is the transformers model, `config` its configuration."""

    RENAMES: tuple[tuple[str, str], ...]
    """Regular expressions from names in checkpoint files to names in the transformers model, the first match wins."""

    @staticmethod
    def vision_info(config: Any) -> VisionInfo:
        """Image size, grid of visual tokens and feature size."""

    @staticmethod
    def image_features(model: Any, pixel_values: Any) -> Any:
        """Projected features [T, n, D] of T images [T, 3, h, w], as torch operations without control flow."""

    @staticmethod
    def language_model(model: Any) -> Any:
        """The decoder: a module with embed_tokens, layers, norm and rotary_emb."""


def family(model_type: str) -> Family:
    """The module of a family.

    Raises:
        CheckpointError: no file supports this model type.
    """
    if model_type not in SUPPORTED:
        raise CheckpointError(f"model_type {model_type!r} is not supported; supported are: {', '.join(SUPPORTED)}")
    module: Any = importlib.import_module(f"iwp_export.models.{model_type}")
    return module
