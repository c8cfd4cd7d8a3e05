"""What is particular to each family of models, one file per Hugging Face model_type. Needs no torch to import."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from iwp_export.errors import CheckpointError

if TYPE_CHECKING:
    from iwp_export.models.common.family import Family

ALIASES: Mapping[str, str] = {
    "tiny-llava": str(Path(__file__).parent.parent / "assets" / "tiny_llava"),
    "llava": "llava-hf/llava-1.5-7b-hf",
    "llava-next": "llava-hf/llava-v1.6-mistral-7b-hf",
}
"""Short names of checkpoints: a folder shipped with the package, or a Hub id."""

SUPPORTED = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg))
"""The model types with a file in this package."""


def find_family(model_type: str) -> Family:
    """The family of a model type.

    Raises:
        CheckpointError: no file supports it.
    """
    if model_type not in SUPPORTED:
        raise CheckpointError(f"model_type {model_type!r} is not supported; supported are: {', '.join(SUPPORTED)}")
    family: Family = importlib.import_module(f"iwp_export.models.{model_type}").FAMILY
    return family
