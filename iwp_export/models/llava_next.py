"""LLaVA-NeXT: an image of any resolution as one small view and a canvas of tiles, whose lines end in a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iwp_export.bundle.manifest import Bounds, VisionInfo
from iwp_export.errors import BundleError, CheckpointError, RequestError
from iwp_export.models.common.family import Array, Colours, Family, Picture, View, VisionGraph
from iwp_export.models.common.tiles import (
    TOWER_ROWS,
    Ints,
    pixels_of,
    tile_grid,
    tower_features,
    tower_side,
    unpadded,
)

TYPICAL_IMAGE = (480, 640)
"""Height and width that engines choose kernels for: a camera's frame."""


class LlavaNext(Family):
    config_rows: Mapping[str, tuple[Any, ...]] = {**TOWER_ROWS, "image_grid_pinpoints": ("pairs", 1, 1 << 13)}

    def vision_info(self, config: Any) -> VisionInfo:
        """An image is the tower's square of it, side x side tokens, and the best of the canvases of tiles."""
        from transformers.image_processing_utils import select_best_resolution

        side, pixels = tower_side(config, "llava_next"), config.vision_config.image_size
        canvases = [(int(height), int(width)) for height, width in config.image_grid_pinpoints]
        if not canvases or any(size % pixels or size <= 0 for canvas in canvases for size in canvas):
            raise CheckpointError(f"image_grid_pinpoints {canvases} are not whole tiles of {pixels} pixels")
        tiles = [height * width // pixels**2 + 1 for height, width in canvases]
        height, width = select_best_resolution(TYPICAL_IMAGE, canvases)
        typical = len(_pack(TYPICAL_IMAGE, (height // pixels, width // pixels), side)[0])
        greatest = max(side * side + h // pixels * side * (w // pixels * side + 1) for h, w in canvases)
        tokens = Bounds(side * side, typical, greatest)
        return VisionInfo(
            image_token_id=config.image_token_id,
            feature_size=config.text_config.hidden_size,
            tokens=tokens,
            dims={"tiles": Bounds(min(tiles), height * width // pixels**2 + 1, max(tiles)), "visual_tokens": tokens},
            geometry={"pixels": pixels, "side": side, "canvases": [list(canvas) for canvas in canvases]},
        )

    def vision_graph(self, model: Any) -> VisionGraph:
        import torch

        class Encoder(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, pixel_values: torch.Tensor, pack_index: torch.Tensor) -> torch.Tensor:
                tiles = tower_features(self.model, pixel_values.to(self.model.dtype)).flatten(0, 1)
                return torch.cat([self.model.model.image_newline[None], tiles]).index_select(0, pack_index)

        size = model.config.vision_config.image_size
        inputs = {"pixel_values": torch.zeros(3, 3, size, size), "pack_index": torch.zeros(7, dtype=torch.int64)}
        return VisionGraph(Encoder(), inputs, {"pixel_values": {0: "tiles"}, "pack_index": {0: "visual_tokens"}})

    def check_processor(self, images: Any, vision: VisionInfo) -> None:
        own = [list(canvas) for canvas in getattr(images, "image_grid_pinpoints", None) or ()]
        if own != (canvases := vision.geometry["canvases"]):  # of two that fit equally well the first counts
            raise BundleError(
                f"its image processor's image_grid_pinpoints are {own}, its model's {canvases}: make them the same, in "
                "the same order"
            )

    def picture(self, outputs: Mapping[str, Array], vision: VisionInfo, colours: Colours) -> Picture:
        from transformers.image_processing_utils import select_best_resolution

        pixels, side = int(vision.geometry["pixels"]), int(vision.geometry["side"])
        tiles = pixels_of(outputs, (1, None, 3, pixels, pixels))[0]
        size = _image_size(outputs)
        height, width = select_best_resolution(size, vision.geometry["canvases"])
        grid = height // pixels, width // pixels
        if len(tiles) != grid[0] * grid[1] + 1:
            raise RequestError(
                f"the image processor made {len(tiles)} tiles of an image of {size[0]} x {size[1]} pixels, the model "
                f"takes {grid[0] * grid[1] + 1}: its image_grid_pinpoints are not the model's"
            )
        index, places = _pack(size, grid, side)
        inputs = {"pixel_values": tiles, "pack_index": index}
        base = View(colours.seen(tiles[0]), np.arange(side * side).reshape(side, side))
        return Picture(
            inputs, len(index), (base, *_canvas_view(tiles[1:], grid, size, places, pixels // side, colours))
        )


def _pack(size: tuple[int, int], grid: tuple[int, int], side: int) -> tuple[Ints, Ints]:
    """How the tokens of an image are gathered from line end (row 0) and the features of its tiles.

    Args:
        size: the image's height and width.
        grid: rows and columns of tiles of its canvas.
        side: patches along a tile's side.

    Returns:
        Row of each token: the whole image's side x side, then the canvas without its padding, each line with an end;
        and index of the token of each cell of the canvas without padding, [rows, columns].
    """
    first = side * side
    cells, _ = unpadded(tile_grid(*grid, side), size)
    rows = np.pad(1 + first + cells, ((0, 0), (0, 1)))
    places = first + np.arange(rows.size).reshape(rows.shape)[:, :-1]
    return np.concatenate([1 + np.arange(first), rows.ravel()]), places


def _canvas_view(
    tiles: Array, grid: tuple[int, int], size: tuple[int, int], places: Ints, patch: int, colours: Colours
) -> Sequence[View]:
    """The canvas without its padding, as the model saw it; none where nothing is left of it."""
    if not places.size:
        return ()
    rows, columns = grid
    channels, height, width = tiles.shape[1:]
    canvas = tiles.reshape(rows, columns, channels, height, width).transpose(2, 0, 3, 1, 4)
    canvas = canvas.reshape(channels, rows * height, columns * width)
    side = height // patch
    _, (top, left) = unpadded(np.empty((rows * side, columns * side)), size)
    top, left = top * patch, left * patch
    seen = canvas[:, top : top + places.shape[0] * patch, left : left + places.shape[1] * patch]
    return (View(colours.seen(seen), places),)


def _image_size(outputs: Mapping[str, Array]) -> tuple[int, int]:
    sizes = np.asarray(outputs.get("image_sizes", ()))
    if sizes.shape != (1, 2) or sizes.min() < 1:
        raise RequestError(f"image_sizes must be one height and width, got {sizes.tolist()}")
    return int(sizes[0, 0]), int(sizes[0, 1])


FAMILY = LlavaNext()
