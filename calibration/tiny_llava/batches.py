"""Training batches: scenes with their per-patch labels and questions, as tensors."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.tiny_llava.checkpoint import GRID, NUM_VISUAL, PATCH_SIZE
from calibration.tiny_llava.scenes import Pools, Scene, draw_scene
from calibration.tiny_llava.vocabulary import COLOUR_NAMES, KINDS, WORD_ID, Kind, encode, question_text

NO_VALUE = 10
NO_COLOUR = len(COLOUR_NAMES)
# Counting is learnt from few questions; reading a digit or a colour needs many.
KIND_SHARES = {"digit-of-colour": 0.45, "colour-of-digit": 0.45, "count": 0.10}


@dataclass(frozen=True)
class Batch:
    """A batch of B scenes with Q questions each.

    Attributes:
        pixels: normalised images, [B, 3, 112, 112].
        patch_values: the digit at a patch's centre or `NO_VALUE`, [B, 64].
        patch_colours: the colour number at a patch's centre or `NO_COLOUR`, [B, 64].
        questions: token numbers, [B, Q, 6].
        answers: one token number each, [B, Q].
    """

    pixels: torch.Tensor
    patch_values: torch.Tensor
    patch_colours: torch.Tensor
    questions: torch.Tensor
    answers: torch.Tensor


def draw_batch(pools: Pools, rng: np.random.Generator, size: int, num_questions: int, device: str) -> Batch:
    """Draws `size` scenes with `num_questions` questions each."""
    scenes = [draw_scene(pools, rng) for _ in range(size)]
    labels = np.stack([patch_labels(scene) for scene in scenes])
    asked = [_ask(scene, num_questions, rng) for scene in scenes]
    return Batch(
        pixels=normalise(torch.from_numpy(np.stack([scene.image for scene in scenes])).to(device)),
        patch_values=torch.from_numpy(labels[:, 0]).to(device),
        patch_colours=torch.from_numpy(labels[:, 1]).to(device),
        questions=torch.tensor([[encode(question) for question, _ in row] for row in asked], device=device),
        answers=torch.tensor([[WORD_ID[answer] for _, answer in row] for row in asked], device=device),
    )


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Images [B, 112, 112, 3] (uint8) as the image processor gives them: [B, 3, 112, 112] in [-1, 1]."""
    return (images.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()


def patch_labels(scene: Scene) -> NDArray[np.int64]:
    """Value and colour number of the digit whose box holds each patch's centre, [2, 64]."""
    labels = np.empty((2, GRID, GRID), dtype=np.int64)
    labels[0], labels[1] = NO_VALUE, NO_COLOUR
    centres = PATCH_SIZE // 2 + PATCH_SIZE * np.arange(GRID)
    for digit in scene.digits:
        left, top, right, bottom = digit.box
        rows = np.flatnonzero((centres >= top) & (centres < bottom))
        columns = np.flatnonzero((centres >= left) & (centres < right))
        labels[0][np.ix_(rows, columns)] = digit.value
        labels[1][np.ix_(rows, columns)] = COLOUR_NAMES.index(digit.colour)
    return labels.reshape(2, NUM_VISUAL)


def answer_to(scene: Scene, kind: Kind, asked: int) -> str:
    """The true answer to a question of `kind` about the scene's digit number `asked`."""
    if kind == "digit-of-colour":
        return str(scene.digits[asked].value)
    if kind == "colour-of-digit":
        return scene.digits[asked].colour
    return str(len(scene.digits))


def _ask(scene: Scene, number: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Random questions with their answers."""
    kinds = rng.choice(len(KINDS), size=number, p=[KIND_SHARES[kind] for kind in KINDS])
    asked = rng.integers(len(scene.digits), size=number)
    pairs = []
    for kind, index in zip((KINDS[i] for i in kinds), asked.tolist(), strict=True):
        digit = scene.digits[index]
        pairs.append((question_text(kind, digit.value, digit.colour), answer_to(scene, kind, index)))
    return pairs
