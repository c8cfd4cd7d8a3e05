"""Images as a request brings them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
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
        with _readable(str(source)), Image.open(source) as image:
            return _upright(image)
    if isinstance(source, Image.Image):
        with _readable(f"{source.mode} {source.width} x {source.height}"):
            return _upright(source)
    raise RequestError(f"an image is a path, a PIL image or a uint8 array, got {type(source).__name__}")


def _upright(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError("it has no pixels")
    return ImageOps.exif_transpose(image).convert("RGB")


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """PIL reads pixels when they are first asked for: whatever it raises then is an image that cannot be read.

    Raises:
        RequestError: the block failed so.
    """
    try:
        yield
    except MemoryError as error:
        raise RequestError(f"cannot read the image {name}: it does not fit into memory") from error
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
        raise RequestError(f"cannot read the image {name}: {reason or type(error).__name__}") from error
