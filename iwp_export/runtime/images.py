"""Images as a request brings them, and as the model sees them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from iwp_export.backends.session import Floats
from iwp_export.errors import RequestError

ImageSource: TypeAlias = str | Path | Image.Image | npt.NDArray[np.uint8]
"""A file's path, a PIL image, or an array uint8 [H, W, 3] in RGB."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A preprocessed image.

    Attributes:
        pixel_values: float32 [T, 3, h, w], what the vision tower takes.
        seen: uint8 [h, w, 3], the same pixels as the model saw them, resized and cropped.
        digest: hash of `pixel_values`; equal pictures have equal features.
    """

    pixel_values: Floats
    seen: npt.NDArray[np.uint8]
    digest: bytes


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


def make_picture(pixel_values: npt.ArrayLike, mean: npt.ArrayLike = 0.0, std: npt.ArrayLike = 1.0) -> Picture:
    """A picture from what an image processor made.

    Args:
        pixel_values: [T, 3, h, w]; the first tile is the one to show.
        mean, std: per channel, what the processor subtracted and then divided by.
    """
    pixels = np.ascontiguousarray(pixel_values, dtype=np.float32)
    channels = pixels[0].transpose(1, 2, 0) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    seen = np.rint(np.clip(channels, 0, 1) * 255).astype(np.uint8)
    header = repr(pixels.shape).encode()
    return Picture(pixels, seen, hashlib.blake2b(header + pixels.tobytes(), digest_size=16).digest())
