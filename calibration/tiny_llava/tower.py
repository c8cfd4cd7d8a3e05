"""Stages 1 and 2: the vision tower reads patches, the projector speaks the language model's words."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from calibration.tiny_llava.batches import NO_COLOUR, NO_VALUE, Batch, draw_batch
from calibration.tiny_llava.checkpoint import WIDTH
from calibration.tiny_llava.scenes import Pools
from calibration.tiny_llava.vocabulary import COLOUR_NAMES, WORD_ID

_NUM_VALUES, _NUM_COLOURS = NO_VALUE + 1, NO_COLOUR + 1
# Seven patches of eight show no digit: they would drown the others.
_BACKGROUND_WEIGHT = 0.2
_BACKGROUND_WORD = "picture"
# Word embeddings have length sqrt(128) / 2: the products with them are scaled to a softmax's useful range.
_ALIGN_SCALE = 0.3

Report = Callable[[str, dict[str, float]], None]


def dense_head() -> nn.Sequential:
    """A head that reads digit value and colour off every patch; used in training alone."""
    return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, _NUM_VALUES + _NUM_COLOURS))


def patch_features(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """The tower's features [B, 64, 128], class token dropped: what the projector gets in the stock model."""
    tower = model.model.vision_tower
    return tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]


def dense_loss(scores: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Cross-entropy of `scores` [B, 64, values + colours] against the patches' labels."""
    values = _weighted(scores[..., :_NUM_VALUES], batch.patch_values)
    return values + _weighted(scores[..., _NUM_VALUES:], batch.patch_colours)


def tower_step(model: LlavaForConditionalGeneration, head: nn.Module, batch: Batch) -> torch.Tensor:
    """Loss of one step of stage 1."""
    return dense_loss(head(patch_features(model, batch.pixels)), batch)


def align_step(model: LlavaForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """Loss of one step of stage 2: a projected patch should resemble the embeddings of its digit and its colour."""
    embeddings = model.model.language_model.embed_tokens.weight.detach()
    words = [*map(str, range(10)), _BACKGROUND_WORD, *COLOUR_NAMES, _BACKGROUND_WORD]
    targets = embeddings[[WORD_ID[word] for word in words]]
    with torch.no_grad():
        features = patch_features(model, batch.pixels)
    projected = model.model.multi_modal_projector(features)
    return dense_loss(projected @ targets.T * _ALIGN_SCALE, batch)


def cosine_rate(step: int, steps: int, floor: float, warm_up: int = 100) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine from 1 down to `floor`."""
    cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / warm_up) * cosine


def train_tower(
    model: LlavaForConditionalGeneration,
    head: nn.Module,
    pools: Pools,
    steps: int,
    device: str,
    report: Report,
    seed: int = 11,
    batch_size: int = 48,
    peak_rate: float = 1.2e-3,
    head_alone: bool = False,
) -> None:
    """Stage 1: trains tower and head in place, or the head of a tower that is trained already."""
    rng = np.random.default_rng(seed)
    parameters = [*([] if head_alone else model.model.vision_tower.parameters()), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, peak_rate, weight_decay=0.02, betas=(0.9, 0.98))
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = peak_rate * cosine_rate(step, steps, floor=0.05)
        loss = tower_step(model, head, draw_batch(pools, rng, batch_size, 0, device))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if step % 100 == 99:
            report("tower", {"step": step + 1, "loss": loss.item()})


def align_projector(
    model: LlavaForConditionalGeneration,
    pools: Pools,
    steps: int,
    device: str,
    report: Report,
    seed: int = 12,
    batch_size: int = 32,
    rate: float = 2e-3,
) -> None:
    """Stage 2: trains the projector in place; tower and embeddings stay as they are."""
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(model.model.multi_modal_projector.parameters(), rate)
    for step in range(steps):
        loss = align_step(model, draw_batch(pools, rng, batch_size, 0, device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 99:
            report("align", {"step": step + 1, "loss": loss.item()})


def patch_accuracy(model: LlavaForConditionalGeneration, head: nn.Module, batch: Batch) -> dict[str, float]:
    """Share of digit patches whose value and colour the head reads right."""
    with torch.no_grad():
        scores = head(patch_features(model, batch.pixels))
    on_digit = batch.patch_values < NO_VALUE
    values = scores[..., :_NUM_VALUES].argmax(-1) == batch.patch_values
    colours = scores[..., _NUM_VALUES:].argmax(-1) == batch.patch_colours
    return {"value": values[on_digit].float().mean().item(), "colour": colours[on_digit].float().mean().item()}


def _weighted(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in which the last class, the background, weighs little."""
    weights = torch.ones(scores.shape[-1], device=scores.device)
    weights[-1] = _BACKGROUND_WEIGHT
    return functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), weights)
