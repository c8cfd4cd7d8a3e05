"""Geometry of images that are cut into tiles: towers that see squares, and features that are packed from tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iwp_export.errors import CheckpointError, RequestError
from iwp_export.models.common.family import Array

if TYPE_CHECKING:
    from torch import Tensor

Ints = npt.NDArray[np.int64]

TOWERS = ("clip_vision_model", "siglip_vision_model")
"""Vision towers of square images, patch by patch."""
MAX_SIDE = 256
"""Patches along a side, more than any tower has."""

TOWER_ROWS: Mapping[str, tuple[Any, ...]] = {
    "image_token_index": ("int", 0, lambda config: config.text_config.vocab_size - 1),
    "projector_hidden_act": ("activation",),
    "vision_config.num_hidden_layers": ("int", 1, 1000),
    "vision_config.num_attention_heads": ("int", 1, 1 << 16),
    "vision_config.hidden_size": ("int", 1, 1 << 20, "vision_config.num_attention_heads"),
    "vision_config.intermediate_size": ("int", 1, 1 << 22),
    "vision_config.image_size": ("int", 1, 1 << 13),
    "vision_config.patch_size": (
        "int",
        lambda config: -(-config.vision_config.image_size // MAX_SIDE),
        "vision_config.image_size",
    ),
    "vision_config.num_channels": ("int", 3, 3),
    "vision_config.layer_norm_eps": ("number", 0, 1),
    "vision_config.hidden_act": ("activation",),
    "vision_feature_layer": (
        "ints",
        lambda config: -config.vision_config.num_hidden_layers - 1,
        "vision_config.num_hidden_layers",
    ),
}
"""Rows of `Family.config_rows` for a tower of squares and its projector."""


def tower_side(config: Any, model_type: str) -> int:
    """Patches along a side of the tower's square image; checks that the family's files run such a tower.

    Raises:
        CheckpointError: another tower, or one whose class token would be kept.
    """
    tower = config.vision_config
    if tower.model_type not in TOWERS:
        known = ", ".join(TOWERS)
        raise CheckpointError(f"vision tower {tower.model_type!r} is not supported in {model_type}; supported: {known}")
    strategy, is_clip = config.vision_feature_select_strategy, tower.model_type == "clip_vision_model"
    if strategy != ("default" if is_clip else "full"):
        effect = "keeps CLIP's class token" if is_clip else "drops SigLIP's first patch, as there is no class token"
        raise CheckpointError(
            f"vision_feature_select_strategy {strategy!r} {effect}: not supported (another value makes another model)"
        )
    return tower.image_size // tower.patch_size


def tower_features(model: Any, pixel_values: Tensor) -> Tensor:
    """Hidden states of the tower's chosen layers, joined, without a class token, projected: [T, n, D]."""
    import torch

    body, config = model.model, model.config
    hidden = body.vision_tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
    layers = config.vision_feature_layer
    chosen = torch.cat([hidden[i] for i in ([layers] if isinstance(layers, int) else layers)], dim=-1)
    if config.vision_feature_select_strategy == "default":
        chosen = chosen[:, 1:]
    return body.multi_modal_projector(chosen)


def pixels_of(outputs: Mapping[str, Array], shape: tuple[int | None, ...]) -> Array:
    """The processor's `pixel_values` as float32 of a shape; None in it stands for any length.

    Raises:
        RequestError: another shape, or values that are not finite.
    """
    pixels = np.ascontiguousarray(outputs["pixel_values"], np.float32)
    fits = pixels.ndim == len(shape) and all(
        want in (None, size) for want, size in zip(shape, pixels.shape, strict=True)
    )
    if not fits or 0 in pixels.shape:
        wanted = ", ".join("?" if size is None else str(size) for size in shape)
        raise RequestError(f"pixel_values have shape {list(pixels.shape)}, the model takes [{wanted}]")
    if not np.isfinite(pixels).all():
        raise RequestError("pixel_values hold a value that is not finite (NaN or infinity)")
    return pixels


def tile_grid(rows: int, columns: int, side: int) -> Ints:
    """Index of each patch of a canvas of rows x columns tiles, [rows * side, columns * side], tiles one by one."""
    tiles = np.arange(rows * columns * side * side, dtype=np.int64).reshape(rows, columns, side, side)
    return tiles.transpose(0, 2, 1, 3).reshape(rows * side, columns * side)


def unpadded(grid: Array, size: tuple[int, int]) -> tuple[Array, tuple[int, int]]:
    """A canvas without the rows or columns of padding beside an image that was resized to fit it.

    Args:
        grid: [rows, columns, ...] over the whole canvas.
        size: height and width of the image before it was resized.

    Returns:
        The part, and how many rows and columns were cut at its top and left.
    """
    (height, width), (rows, columns) = size, grid.shape[:2]
    if width / height > columns / rows:
        used = int(round(height * (columns / width), 7))
        cut = (rows - used) // 2
        return grid[cut : rows - cut], (cut, 0)
    used = int(round(width * (rows / height), 7))
    cut = (columns - used) // 2
    return grid[:, cut : columns - cut], (0, cut)
