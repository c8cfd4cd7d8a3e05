"""Choices that look at nothing, or nearly: what every method must beat."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from calibration.studies.rivals.method import Choose
from iwp_export.backends.torch.decoder import Seen


def choose_grid(seen: Seen, count: int) -> Tensor:
    """`count` cells spread evenly over a square grid of tokens, or over the tokens in their order if they are none."""
    number = len(seen.features)
    side = round(number**0.5)
    if side**2 != number:
        return torch.from_numpy(np.linspace(0, number - 1, count).round().astype(int))
    rows = max(1, round(count**0.5))
    per_row = -(-count // rows)
    centres = [
        int((i + 0.5) * side / rows) * side + int((j + 0.5) * side / per_row)
        for i in range(rows)
        for j in range(per_row)
    ]
    spread = np.linspace(0, len(centres) - 1, count).round().astype(int)
    return torch.tensor([centres[i] for i in spread])


def at_random(seed: int) -> Choose:
    """Chance, from one generator for all calls."""
    generator = torch.Generator().manual_seed(seed)
    return lambda seen, count: torch.randperm(len(seen.features), generator=generator)[:count]
