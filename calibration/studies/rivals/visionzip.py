"""VisionZip: the patches that the vision tower's class token attends to, and a few merged from the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from calibration.studies.rivals.method import largest, unit
from iwp_export.backends.torch.decoder import Condensed, Seen, TowerSeen

CONTEXTUAL_SHARE = 10 / 64
"""Of the budget, merged tokens: its authors' 54 + 10."""


def class_attention(tower: TowerSeen) -> Tensor:
    """Attention of the class token to each patch, summed over the heads, float32 [n]; softmax over all tokens."""
    query, key = tower.query[:, :1].float(), tower.key.float()
    attention = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(dim=-1)
    return attention.sum(dim=0)[0, 1:]


def merge(hidden: Tensor, metric: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Contextual tokens: every other token is merged into the evenly spaced target whose key is most like its own.

    Args:
        hidden: [m, C] of the patches that are not dominant. metric: [m, d], their keys.
        count: targets.

    Returns:
        [count, C], each a target plus the mean of the tokens merged into it; and the targets, int64 [count].
    """
    step = max(1, len(hidden) // count) if count else 1
    targets = torch.arange(0, len(hidden), step)[:count]
    others = torch.ones(len(hidden), dtype=torch.bool)
    others[targets] = False
    merged = hidden[targets].clone()
    if count and others.any():
        direction = unit(metric)
        nearest = (direction[others] @ direction[targets].T).argmax(dim=1)
        one_hot = torch.nn.functional.one_hot(nearest, count).to(hidden.dtype)
        merged += one_hot.T @ hidden[others] / one_hot.sum(dim=0).clamp(min=1)[:, None]
    return merged, targets


def condense(seen: Seen, count: int) -> Condensed:
    """VisionZip (S. Yang et al., arXiv:2412.04467; github.com/dvlab-research/VisionZip's clip_encoder.py).

    As the code does it: of the hidden states that the projector takes, the class token's, the `dominant - 1` patches
    that it attends to most in the layer that made them, and `contextual` merged ones, in this order; then the
    projector. Merging changes the features, so it cannot be done at a layer of the language model.

    What differs: the budget is IWP's ceil(keep * n), shared as 54 : 10, its authors' shares of 64. Towers without
    a class token are refused.
    """
    (tower,) = seen.towers()
    contextual = round(count * CONTEXTUAL_SHARE)
    dominant = largest(class_attention(tower), count - contextual - 1).sort().values
    patches = tower.hidden[1:]
    rest = torch.ones(len(patches), dtype=torch.bool)
    rest[dominant] = False
    merged, targets = merge(patches[rest], tower.key[:, 1:].mean(dim=0)[rest], contextual)
    features = tower.project(torch.cat([tower.hidden[:1], patches[dominant], merged]))
    rows = torch.cat([dominant, torch.nonzero(rest)[targets, 0]]).sort().values
    return Condensed(features, rows)


def choose(seen: Seen, count: int) -> Tensor:
    """Dominant tokens alone, `count` of them and no class token, dropped at the pruning layer with their positions.

    Not the paper's method but its criterion on equal terms with the others.
    """
    return largest(torch.cat([class_attention(tower) for tower in seen.towers()]), count)
