"""Drawing which visual tokens were kept, on the image as the model saw it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from iwp_export.errors import RequestError

MIN_SIDE = 768
"""Pixels of the shorter side of a drawing: smaller images are enlarged so that people can see them."""
DIMMED_LIGHT, DIMMED_COLOUR = 0.32, 0.25
"""Share of its light and of its colour that a dropped patch keeps."""
OUTLINE = (255, 196, 0)
THICK_FROM = 24
"""Pixels of a patch from which its outline is four pixels wide, else two."""
GRID_LIGHT = 0.72
"""Share of its light that a pixel on the border of two patches keeps."""


def draw_kept(
    seen: npt.NDArray[np.uint8], kept: Iterable[int], grid: tuple[int, int], min_side: int = MIN_SIDE
) -> Image.Image:
    """The image with kept patches as they are, dropped ones dimmed, and a line around what was kept.

    Args:
        seen: uint8 [h, w, 3], the image as the model saw it (`Picture.seen`).
        kept: indices of the kept visual tokens, row by row in the grid.
        grid: rows and columns of visual tokens.
        min_side: pixels of the drawing's shorter side at least; the drawing is made of whole pixels per patch.

    Raises:
        RequestError: an index is not in the grid.
    """
    rows, columns = grid
    chosen = np.asarray(list(kept), np.int64)
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < rows * columns):
        raise RequestError(
            f"kept patches must be within 0 and {rows * columns - 1}, got {chosen.min()}..{chosen.max()}"
        )
    mask = np.isin(np.arange(rows * columns), chosen).reshape(rows, columns)
    cell_height, cell_width = _cell_size(seen.shape[0] / rows, seen.shape[1] / columns, min_side / min(rows, columns))
    size = (columns * cell_width, rows * cell_height)
    pixels = np.asarray(Image.fromarray(seen).resize(size, Image.Resampling.LANCZOS), np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    dimmed = DIMMED_LIGHT * (DIMMED_COLOUR * pixels + (1 - DIMMED_COLOUR) * grey[..., None])
    bright = mask.repeat(cell_height, 0).repeat(cell_width, 1)
    pixels = np.where(bright[..., None], pixels, dimmed)
    pixels[cell_height::cell_height] *= GRID_LIGHT
    pixels[:, cell_width::cell_width] *= GRID_LIGHT
    image = Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))
    _outline(ImageDraw.Draw(image), mask, cell_width, cell_height)
    return image


def _cell_size(height: float, width: float, smallest: float) -> tuple[int, int]:
    """Whole pixels of one patch, in the image's proportions, its shorter side at least `smallest`."""
    scale = max(1.0, smallest / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _outline(draw: ImageDraw.ImageDraw, mask: npt.NDArray[np.bool_], cell_width: int, cell_height: int) -> None:
    """Lines where a kept patch borders on a dropped one or on the image's edge; they overlap to full corners."""
    half = 2 if min(cell_width, cell_height) >= THICK_FROM else 1
    padded = np.pad(mask, 1)
    upright = [(row - 1, column, row, column) for row, column in np.argwhere(padded[:, 1:] != padded[:, :-1])]
    level = [(row, column - 1, row, column) for row, column in np.argwhere(padded[1:] != padded[:-1])]
    for top, left, bottom, right in upright + level:
        box = (
            left * cell_width - half,
            top * cell_height - half,
            right * cell_width + half,
            bottom * cell_height + half,
        )
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=OUTLINE)
