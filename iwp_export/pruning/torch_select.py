"""IWP selection in torch, index for index the numpy oracle's, used by the torch reference model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from iwp_export.pruning.reference import PENALTY_FLOOR
from iwp_export.pruning.settings import PruningSettings, chunk_schedule

Select = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""`iwp::SelectTokens`: (query, key, key_rotated, value, is_visual, num_kept) -> kept_index [B, K]."""


def kept_index(
    query: Tensor,
    key: Tensor,
    key_rotated: Tensor,
    value: Tensor,
    is_visual: Tensor,
    num_kept: int,
    settings: PruningSettings,
) -> Tensor:
    """The op `iwp::SelectTokens`: which tokens go on past the pruning layer.

    Args:
        query: [B, H, d], the mean query of each sample.
        key, key_rotated, value: [B, Hkv, S, d] of all tokens, text and visual.
        is_visual: bool [B, S].
        num_kept: tokens that go on in every sample of the batch, text and visual together.
        settings: how tokens are scored.

    Returns:
        int64 [B, num_kept], ascending: every text token and the best visual ones. Samples are independent.

    Raises:
        ValueError: `num_kept` is less than a sample's text tokens or more than its tokens.
    """
    rows = []
    for q, k, r, v, visual in zip(query, key, key_rotated, value, is_visual, strict=True):
        (places,) = torch.nonzero(visual, as_tuple=True)
        budget = num_kept - int((~visual).sum())
        if not 0 <= budget <= len(places):
            raise ValueError(f"num_kept {num_kept} leaves {budget} of {len(places)} visual tokens")
        chosen = select_tokens(q, k[:, places], r[:, places], v[:, places], budget, settings)
        keep = ~visual
        keep[places[chosen]] = True
        rows.append(torch.nonzero(keep)[:, 0])
    return torch.stack(rows)


def select_tokens(
    query: Tensor, key: Tensor, key_rotated: Tensor, value: Tensor, num_keep: int, settings: PruningSettings
) -> Tensor:
    """Choose `num_keep` of n visual tokens, int64 [num_keep] ascending; see `pruning.reference.select_tokens`.

    Args:
        query: [H, d]. key, key_rotated: [Hkv, n, d]. value: [Hkv, n, dv]. Any float type; arithmetic is float32.
    """
    q, k, r, v = (x.float() for x in (query, key, key_rotated, value))
    n = k.shape[1]
    alive = torch.ones(n, dtype=torch.bool, device=k.device)
    if 0 < num_keep < n:
        priority = token_magnitude(q, k, v, settings)
        for size in chunk_schedule(num_keep, settings.chunk, settings.growth):
            masked = torch.where(alive, priority, -torch.inf)
            new = torch.sort(masked, descending=True, stable=True).indices[:size]
            alive[new] = False
            duplicate = token_duplication(r, v, new, settings)
            if settings.duplication_norm == "minmax":
                duplicate = _minmax_of(duplicate, duplicate[alive])
            factor = 1 - settings.penalty * duplicate.amax(dim=1)
            priority = priority * factor.clamp(min=PENALTY_FLOOR)
    elif num_keep:
        alive[:] = False
    return torch.nonzero(~alive)[:, 0]


def token_magnitude(query: Tensor, key: Tensor, value: Tensor, settings: PruningSettings) -> Tensor:
    """Importance of each token in [0, 1], float32 [n] (Eq. 10)."""
    value_norm = value.norm(dim=-1)[:, None]
    if settings.magnitude == "value":
        score = value_norm
    elif settings.magnitude == "key":
        score = key.norm(dim=-1)[:, None]
    else:
        root = key.shape[-1] ** 0.5
        if settings.magnitude == "update":
            logits = key.square().sum(-1)[:, None] / (2 * root)
        else:
            logits = query.view(key.shape[0], -1, key.shape[-1]) @ key.transpose(1, 2) / root
        kernel = logits.softmax(dim=-1) if settings.heads == "softmax" else torch.exp(logits - logits.max())
        score = kernel if settings.magnitude == "kernel" else kernel * value_norm
    mean = score.mean(dim=(0, 1))
    return _minmax_of(mean, mean)


def token_duplication(key_rotated: Tensor, value: Tensor, new: Tensor, settings: PruningSettings) -> Tensor:
    """Squared similarity of every token to each of `new`, averaged over key/value heads, float32 [n, len(new)]."""
    total = torch.ones(1, 1, 1, device=value.device)
    if settings.similarity in ("dual_weight", "value"):
        total = total * _cosine(value, new)
    if settings.similarity == "key":
        total = total * _cosine(key_rotated, new)
    if settings.similarity in ("dual_weight", "kernel"):
        square = key_rotated.square().sum(-1, keepdim=True)
        product = key_rotated @ key_rotated[:, new].transpose(1, 2)
        distance = square + square[:, new].transpose(1, 2) - 2 * product
        total = total * torch.exp(-distance.clamp(min=0) / (2 * key_rotated.shape[-1] ** 0.5))
    return total.square().mean(dim=0)


def _cosine(x: Tensor, new: Tensor) -> Tensor:
    norm = x.norm(dim=-1, keepdim=True)
    unit = x / torch.where(norm > 0, norm, 1)
    return unit @ unit[:, new].transpose(1, 2)


def _minmax_of(x: Tensor, within: Tensor) -> Tensor:
    if within.numel() == 0 or bool(within.max() == within.min()):
        return torch.ones_like(x)
    return (x - within.min()) / (within.max() - within.min())
