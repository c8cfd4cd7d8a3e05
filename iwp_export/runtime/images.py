"""Images as a request brings them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from iwp_export.errors import RequestError

ImageSource: TypeAlias = str | Path | Image.Image | npt.NDArray[np.uint8]
"""A file's path, a PIL image, or an array uint8 [H, W, 3] in RGB."""


def load_image(source: ImageSource) -> Image.Image:
    """An RGB image, turned upright as its EXIF data says.

    Raises:
        RequestError: the file cannot be read as an image, or the array is not uint8 [H, W, 3].
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise RequestError(f"an image array must be uint8 [H, W, 3] in RGB, got {source.dtype} {source.shape}")
        return Image.fromarray(np.ascontiguousarray(source))
    if isinstance(source, str | Path):
        try:
            with Image.open(source) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
            raise RequestError(f"cannot read the image {source}: {reason}") from error
    if isinstance(source, Image.Image):
        return ImageOps.exif_transpose(source).convert("RGB")
    raise RequestError(f"an image is a path, a PIL image or a uint8 array, got {type(source).__name__}")
