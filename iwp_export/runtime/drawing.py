"""Drawing which visual tokens were kept, on the image as the model saw it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from iwp_export.errors import RequestError
from iwp_export.models.common.family import Picture, View

MIN_SIDE = 768
"""Pixels of the shorter side of a drawing: smaller images are enlarged so that people can see them."""
DIMMED_LIGHT, DIMMED_COLOUR = 0.32, 0.25
"""Share of its light and of its colour that a dropped patch keeps."""
OUTLINE = (255, 196, 0)
THICK_FROM = 24
"""Pixels of a patch from which its outline is four pixels wide, else two."""
GAP = 16
"""Pixels between the views of a picture."""
GRID_LIGHT = 0.72
"""Share of its light that a pixel on the border of two patches keeps."""


def draw_kept(picture: Picture, kept: Iterable[int], min_side: int = MIN_SIDE) -> Image.Image:
    """The image with kept patches as they are, dropped ones dimmed, and a line around what was kept.

    A picture of several views is drawn side by side.

    Args:
        picture: the image as the model saw it.
        kept: indices of the kept visual tokens.
        min_side: pixels of a view's shorter side at least; a drawing is made of whole pixels per patch.

    Raises:
        RequestError: the picture has no such token.
    """
    chosen = np.asarray(list(kept), np.int64)
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < picture.num_tokens):
        raise RequestError(
            f"kept tokens must be within 0 and {picture.num_tokens - 1}, got {chosen.min()}..{chosen.max()}"
        )
    drawn = [_draw_view(view, np.isin(view.tokens, chosen), min_side) for view in picture.views]
    if len(drawn) == 1:
        return drawn[0]
    sheet = Image.new("RGB", (sum(view.width for view in drawn) + GAP * (len(drawn) - 1), max(v.height for v in drawn)))
    left = 0
    for view in drawn:
        sheet.paste(view, (left, 0))
        left += view.width + GAP
    return sheet


def _draw_view(view: View, mask: npt.NDArray[np.bool_], min_side: int) -> Image.Image:
    rows, columns = mask.shape
    seen = view.seen
    height, width = seen.shape[0] / rows, seen.shape[1] / columns  # of a patch, which is drawn in whole pixels
    scale = max(1.0, min_side / min(rows, columns) / min(height, width))
    cell_height, cell_width = max(1, round(height * scale)), max(1, round(width * scale))
    size = (columns * cell_width, rows * cell_height)
    pixels = np.asarray(Image.fromarray(seen).resize(size, Image.Resampling.LANCZOS), np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    dimmed = DIMMED_LIGHT * (DIMMED_COLOUR * pixels + (1 - DIMMED_COLOUR) * grey[..., None])
    bright = mask.repeat(cell_height, 0).repeat(cell_width, 1)
    pixels = np.where(bright[..., None], pixels, dimmed)
    pixels[cell_height::cell_height] *= GRID_LIGHT
    pixels[:, cell_width::cell_width] *= GRID_LIGHT
    half = 2 if min(cell_width, cell_height) >= THICK_FROM else 1
    kept = Image.fromarray(np.pad(bright, half).astype(np.uint8))
    grown, shrunk = (np.asarray(kept.filter(by(2 * half + 1))) for by in (ImageFilter.MaxFilter, ImageFilter.MinFilter))
    pixels[(grown != shrunk)[half:-half, half:-half]] = OUTLINE
    return Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))
