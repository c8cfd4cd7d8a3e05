"""An image as the model sees it: the vision graph's inputs, and where its visual tokens lie."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class View:
    """A rectangle of pixels and the visual tokens that stand for its cells, for drawing.

    Attributes:
        seen: uint8 [h, w, 3], the pixels as the model saw them.
        tokens: int64 [rows, columns], index of the picture's visual token of each cell.
    """

    seen: npt.NDArray[np.uint8]
    tokens: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Picture:
    """A preprocessed image.

    Attributes:
        inputs: the vision graph's inputs for this image, by name.
        num_tokens: visual tokens that the graph makes of it.
        views: what the model saw; tokens that stand for no place, such as line ends, are in no view.
    """

    inputs: Mapping[str, Array]
    num_tokens: int
    views: tuple[View, ...]

    @cached_property
    def digest(self) -> bytes:
        """A hash of the inputs: pictures with equal digests have equal features."""
        digest = hashlib.blake2b(digest_size=16)
        for name, array in sorted(self.inputs.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.digest()


@dataclass(frozen=True)
class Colours:
    """How an image processor normalises: it subtracts `mean` and divides by `std`, per channel."""

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def seen(self, pixels: Array) -> npt.NDArray[np.uint8]:
        """The image uint8 [h, w, 3] behind normalised pixels [3, h, w]."""
        colours = pixels.transpose(1, 2, 0) * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)
        return np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)
