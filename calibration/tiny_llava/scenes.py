"""Scenes of coloured handwritten digits on clutter, drawn from a seed."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from calibration.tiny_llava.vocabulary import COLOUR_NAMES, COLOURS

Split = Literal["train", "heldout"]

IMAGE_SIZE = 112
DIGIT_BOX = 28
MIN_DIGITS, MAX_DIGITS = 3, 5
PHOTO_FOLDER = Path(__file__).parent / "photos"

TRAIN_SHARE = 0.8
_SPLIT_SEED = 0
_SMALLEST_DIGIT = 22
_MAX_ROTATION = 12.0  # degrees
_PHOTO_SHARE = 0.75
_SMALLEST_CROP = 70
_COLOUR_JITTER = 10.0
_BRIGHTNESS_JITTER = 4.0
_LAYOUTS = 500


@dataclass(frozen=True)
class Digit:
    """One digit of a scene; `box` is (left, top, right, bottom) in pixels."""

    value: int
    colour: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """An image [112, 112, 3] (uint8) and the digits in it, all of different values and colours."""

    image: NDArray[np.uint8]
    digits: tuple[Digit, ...]


@dataclass(frozen=True)
class Pools:
    """What scenes are composed from.

    Attributes:
        glyphs: strokes' opacity, [number, 28, 28] (uint8).
        by_value: for each digit value, its rows of `glyphs`.
        backgrounds: [number, 112, 112, 3] (uint8).
        layouts: for each number of digits, top left corners (x, y) of disjoint boxes, [500, number of digits, 2].
    """

    glyphs: NDArray[np.uint8]
    by_value: tuple[NDArray[np.intp], ...]
    backgrounds: NDArray[np.uint8]
    layouts: dict[int, NDArray[np.int64]]


def digit_rows(split: Split) -> NDArray[np.intp]:
    """Rows of scikit-learn's `load_digits` that belong to `split`; the two splits share none."""
    count = len(load_digits().target)
    order = np.random.RandomState(_SPLIT_SEED).permutation(count)
    border = int(TRAIN_SHARE * count)
    return order[:border] if split == "train" else order[border:]


@lru_cache
def photos(split: Split) -> tuple[Image.Image, ...]:
    """The photos behind the scenes of `split`; no photo serves both splits."""
    own = [Image.open(path).convert("RGB") for path in sorted((PHOTO_FOLDER / split).glob("*.png"))]
    if split == "train":
        own += [Image.fromarray(pixels) for pixels in load_sample_images().images]
    return tuple(own)


def build_pools(split: Split, seed: int, variants: int = 8, backgrounds: int = 3000) -> Pools:
    """Prepares glyphs, backgrounds and layouts.

    Args:
        split: whose digits and photos to use.
        seed: the same seed gives the same pools.
        variants: glyphs made of each handwritten digit, each with its own size and rotation.
        backgrounds: number of backgrounds.
    """
    rng = np.random.default_rng(seed)
    rows = digit_rows(split)
    data = load_digits()
    images, values = data.images[rows], np.tile(data.target[rows], variants)
    glyphs = np.stack([_glyph(image, rng) for _ in range(variants) for image in images])
    return Pools(
        glyphs=glyphs,
        by_value=tuple(np.flatnonzero(values == value) for value in range(10)),
        backgrounds=np.stack([_background(split, rng) for _ in range(backgrounds)]),
        layouts={n: np.stack([_layout(n, rng) for _ in range(_LAYOUTS)]) for n in range(MIN_DIGITS, MAX_DIGITS + 1)},
    )


def draw_scene(pools: Pools, rng: np.random.Generator) -> Scene:
    """Composes one scene of 3 to 5 digits."""
    number = int(rng.integers(MIN_DIGITS, MAX_DIGITS + 1))
    corners = _flipped(pools.layouts[number][rng.integers(_LAYOUTS)], int(rng.integers(8)))
    values = rng.permutation(10)[:number]
    colours = [COLOUR_NAMES[i] for i in rng.permutation(len(COLOUR_NAMES))[:number]]
    canvas = pools.backgrounds[rng.integers(len(pools.backgrounds))].astype(np.float32)
    digits = []
    for value, colour, (x, y) in zip(values.tolist(), colours, corners.tolist(), strict=True):
        opacity = pools.glyphs[rng.choice(pools.by_value[value])][..., None] / np.float32(255)
        paint = np.clip(np.array(COLOURS[colour]) + rng.normal(0, _COLOUR_JITTER, 3), 0, 255).astype(np.float32)
        window = canvas[y : y + DIGIT_BOX, x : x + DIGIT_BOX]
        window += opacity * (paint - window)
        digits.append(Digit(value, colour, (x, y, x + DIGIT_BOX, y + DIGIT_BOX)))
    canvas += rng.normal(0, _BRIGHTNESS_JITTER, 3).astype(np.float32)
    return Scene(np.clip(np.rint(canvas), 0, 255).astype(np.uint8), tuple(digits))


def _glyph(image: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Enlarges and turns one 8 x 8 handwritten digit (values 0 to 16) inside a 28 x 28 box."""
    width, height = (int(side) for side in rng.integers(_SMALLEST_DIGIT, DIGIT_BOX + 1, 2))
    pixels = Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8))
    box = Image.new("L", (DIGIT_BOX, DIGIT_BOX))
    enlarged = pixels.resize((width, height), Image.Resampling.BICUBIC)
    box.paste(enlarged, ((DIGIT_BOX - width) // 2, (DIGIT_BOX - height) // 2))
    angle = float(rng.uniform(-_MAX_ROTATION, _MAX_ROTATION))
    return np.asarray(box.rotate(angle, Image.Resampling.BILINEAR))


def _background(split: Split, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A photo crop or coloured noise, partly desaturated and darkened so that the digits stand out in colour."""
    if rng.random() < _PHOTO_SHARE:
        choices = photos(split)
        pixels = _photo_crop(choices[rng.integers(len(choices))], rng) * rng.uniform(0.35, 0.75)
    else:
        cells = int(rng.choice([4, 8, 16, 28]))
        noise = Image.fromarray(rng.integers(0, 130, (cells, cells, 3), dtype=np.uint8))
        pixels = np.asarray(noise.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)).astype(np.float64)
    grey = pixels.mean(axis=2, keepdims=True)
    muted = grey + (pixels - grey) * rng.uniform(0.2, 0.8)
    return np.clip(muted, 0, 255).astype(np.uint8)


def _photo_crop(photo: Image.Image, rng: np.random.Generator) -> NDArray[np.float64]:
    """A random square of `photo`, mirrored half of the time, as [112, 112, 3]."""
    side = int(rng.integers(_SMALLEST_CROP, min(photo.size) + 1))
    x, y = (int(rng.integers(0, extent - side + 1)) for extent in photo.size)
    crop = photo.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
    pixels = np.asarray(crop).astype(np.float64)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def _layout(number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Top left corners [number, 2] of boxes that do not overlap."""
    while True:
        corners: list[NDArray[np.int64]] = []
        for _ in range(40):
            corner = rng.integers(0, IMAGE_SIZE - DIGIT_BOX + 1, 2)
            if all(np.abs(corner - other).max() >= DIGIT_BOX for other in corners):
                corners.append(corner)
            if len(corners) == number:
                return np.stack(corners)


def _flipped(corners: NDArray[np.int64], code: int) -> NDArray[np.int64]:
    """One of the eight mirror images of a layout; bits of `code`: exchange axes, mirror x, mirror y."""
    if code & 1:
        corners = corners[:, ::-1]
    mirrored = IMAGE_SIZE - DIGIT_BOX - corners
    return np.where(np.array([code & 2, code & 4], dtype=bool), mirrored, corners)
