"""How large an image processor may make an image: its settings come with a checkpoint, and images from anywhere."""

from __future__ import annotations

import importlib
import io
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from iwp_export.bundle.manifest import VisionInfo
from iwp_export.errors import BundleError, RequestError, in_one_line

MOST_SIDE = 16_384
"""Pixels of a side, and any other number in an image processor's settings."""
MOST_PIXELS = 1 << 24
"""Of an image that was resized: 4096 x 4096, the largest that a published processor makes."""
MOST_TILES = 64
"""Of one image; published models cut one into 40 at most."""
COUNTS = ("_patches", "_tiles", "_nums", "_crops")
"""Ends of names that hold a number of tiles or patches."""


def most_pixels(vision: VisionInfo) -> int:
    """Pixels that one image may have; fewer where the model's tower sees squares of a fixed side."""
    side = vision.geometry.get("pixels")
    return min(MOST_PIXELS, MOST_TILES * side * side) if isinstance(side, int) else MOST_PIXELS


def check_settings(images: Any, limit: int) -> None:
    """Refuse an image processor that makes images larger than a model takes.

    Args:
        images: a transformers image processor.
        limit: pixels of an image.

    Raises:
        BundleError: a number among its settings is out of all proportion.
    """
    settings = images.to_dict()
    counting = hasattr(images, "merge_size")  # sizes are numbers of pixels where images keep their own grid (Qwen)
    for name, number in _numbers(settings):
        if name.endswith("pixels") or (counting and name.startswith("size.")):
            most = MOST_PIXELS
        else:
            most = MOST_TILES**2 if name.endswith(COUNTS) else MOST_SIDE
        if abs(number) > most:
            raise BundleError(f"its image processor has {name} = {number:,}, and {most:,} is the most that is of use")
    areas = [(name, *_sides(size)) for name, size in settings.items() if isinstance(size, Mapping)]
    areas += [("image_grid_pinpoints", *pair) for pair in settings.get("image_grid_pinpoints") or ()]
    for name, height, width in areas:
        if height * width > limit and not (counting and name == "size"):
            raise BundleError(
                f"its image processor's {name} is {height:,} x {width:,} pixels; "
                f"{limit:,} is the most that is of use to the model"
            )


def check_image(images: Any, width: int, height: int) -> None:
    """Refuse an image that resizing would blow up: a thin line whose short side becomes a whole tile's.

    Raises:
        RequestError: it would have more than `MOST_PIXELS`, or more than Pillow reads from a file.
    """
    size = getattr(images, "size", None)
    short = size.get("shortest_edge") if size else None
    # Processors that count pixels or fit images into canvases do not keep the ratio at the price of size.
    keeps_ratio = not hasattr(images, "merge_size") and not hasattr(images, "image_grid_pinpoints")
    if short and keeps_ratio and getattr(images, "do_resize", False):
        long = short * max(width, height) / min(width, height)
        if short * long > MOST_PIXELS:
            raise RequestError(
                f"an image of {width} x {height} pixels would be resized to {short:,} x {long:,.0f}: crop it"
            )
    squares = getattr(images, "do_pad", False) and hasattr(images, "pad_to_square")
    if squares and max(width, height) ** 2 > 2 * (Image.MAX_IMAGE_PIXELS or MOST_PIXELS):
        raise RequestError(f"an image of {width} x {height} pixels would be padded to a square: crop it")


def _sides(size: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width that settings ask for; one edge stands for both."""
    edge = max((size.get(name) or 0 for name in ("shortest_edge", "longest_edge")), default=0)
    return size.get("height") or edge, size.get("width") or edge


def _numbers(value: Any, name: str = "settings") -> Iterator[tuple[str, float]]:
    """Every number in nested settings, with the name under which it stands."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, str(key) if name == "settings" else f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item, name)
    elif isinstance(value, int | float):
        yield name, value


HEIC = re.compile(rb"....ftyp(hei[cfmsx]|hev[cx]|mif1|msf1)", re.DOTALL)
"""How such a file begins (ISO/IEC 23008-12)."""

ImageSource: TypeAlias = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]
"""A file's path or its content, a PIL image, or an array uint8 [H, W, 3] in RGB."""


def load_image(source: ImageSource) -> Image.Image:
    """An RGB image, turned upright as its EXIF data says.

    Raises:
        RequestError: the file cannot be read as an image, its pixels have more than 8 bits, or the array is not uint8
            [H, W, 3].
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise RequestError(f"an image array must be uint8 [H, W, 3] in RGB, got {source.dtype} {source.shape}")
        return Image.fromarray(np.ascontiguousarray(source))
    if isinstance(source, str | Path):
        with _readable(str(source)), _open(source) as image:
            return _upright(image)
    if isinstance(source, bytes):
        with _readable(f"of {len(source):,} bytes"), _open(io.BytesIO(source)) as image:
            return _upright(image)
    if isinstance(source, Image.Image):
        with _readable(f"{source.mode} {source.width} x {source.height}"):
            return _upright(source)
    raise RequestError(f"an image is a path, a PIL image or a uint8 array, got {type(source).__name__}")


def _open(file: str | Path | io.BytesIO) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        start = file.getvalue() if isinstance(file, io.BytesIO) else Path(file).read_bytes()
        if not HEIC.match(start):
            raise
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError as error:
        raise ValueError("HEIC needs pip install pillow-heif; or save it as PNG or JPEG") from error
    return Image.open(file)


def _upright(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError("it has no pixels")
    if image.mode.startswith(("I", "F")):  # converting clips them: most become white or black
        low, high = (image.convert("I") if ";" in image.mode else image).getextrema()
        raise ValueError(
            f"its pixels have more than 8 bits (mode {image.mode}, {low:g} to {high:g}); scale the range that you "
            "mean to 0 to 255: Image.fromarray(((a - low) * (255 / (high - low))).clip(0, 255).astype('uint8'))"
        )
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
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else in_one_line(error)
        if isinstance(error, UnidentifiedImageError):  # its own text has the address of a stream
            reason = "cannot identify image file"
        raise RequestError(f"cannot read the image {name}: {reason}") from error
