"""IWP selection in torch, index for index the numpy oracle's, used by the torch reference model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from iwp_export.pruning.reference import COVERAGE_FLOOR, PENALTY_FLOOR, likeness, minmax, self_similarity
from iwp_export.pruning.settings import PruningSettings, chunk_schedule

Select = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""`iwp::SelectTokens`: (importance, key, value, is_visual, num_kept) -> kept_index [B, K]."""


def kept_index(
    importance: Tensor, key: Tensor, value: Tensor, is_visual: Tensor, num_kept: int, settings: PruningSettings
) -> Tensor:
    """The op `iwp::SelectTokens`: which tokens go on past the pruning layer.

    Args:
        importance: [B, S]; values at text are ignored.
        key: [B, Hkv, S, d], the keys that duplication compares. value: [B, Hkv, S, dv].
        is_visual: bool [B, S].
        num_kept: tokens that go on in every sample of the batch, text and visual together.
        settings: of the rounds and of duplication.

    Returns:
        int64 [B, num_kept], ascending: every text token and the best visual ones. Samples are independent.

    Raises:
        ValueError: `num_kept` is less than a sample's text tokens or more than its tokens.
    """
    rows = []
    for scores, k, v, visual in zip(importance, key, value, is_visual, strict=True):
        (places,) = torch.nonzero(visual, as_tuple=True)
        budget = num_kept - int((~visual).sum())
        if not 0 <= budget <= len(places):
            raise ValueError(f"num_kept {num_kept} leaves {budget} of {len(places)} visual tokens")
        chosen = select_by_importance(scores[places], k[:, places], v[:, places], budget, settings)
        keep = ~visual
        keep[places[chosen]] = True
        rows.append(torch.nonzero(keep)[:, 0])
    return torch.stack(rows)


def select_by_importance(
    importance: Tensor, key: Tensor, value: Tensor, num_keep: int, settings: PruningSettings
) -> Tensor:
    """Choose `num_keep` of n visual tokens, int64 [num_keep] ascending; see `pruning.reference.select_by_importance`.

    Args:
        importance: [n]. key: [Hkv, n, d]. value: [Hkv, n, dv]. Any float type; arithmetic is float32.
    """
    scores, k, v = (x.float() for x in (importance, key, value))
    alive = torch.ones(k.shape[1], dtype=torch.bool, device=k.device)
    if num_keep == len(alive):
        alive[:] = False
    elif settings.select == "coverage":
        _cover(k, v, num_keep, settings, alive)
    elif num_keep:
        _rank(scores, k, v, num_keep, settings, alive)
    return torch.nonzero(~alive)[:, 0]


def _rank(scores: Tensor, key: Tensor, value: Tensor, count: int, settings: PruningSettings, alive: Tensor) -> None:
    """Algorithm 1; `alive` loses the chosen tokens."""
    priority = minmax(torch, scores, scores)
    for size in chunk_schedule(count, settings.chunk, settings.growth):
        new = torch.sort(torch.where(alive, priority, -torch.inf), descending=True, stable=True).indices[:size]
        alive[new] = False
        if not settings.penalty:
            continue
        duplicate = likeness(torch, key, value, new, settings.similarity).square().mean(dim=0)
        if settings.duplication_norm == "minmax":
            duplicate = minmax(torch, duplicate, duplicate[alive])
        factor = 1 - settings.penalty * duplicate.amax(dim=1)
        priority = priority * factor.clamp(min=PENALTY_FLOOR)


def _cover(key: Tensor, value: Tensor, count: int, settings: PruningSettings, alive: Tensor) -> None:
    """Greedy pivoted Cholesky of the mean similarity; `alive` loses the chosen tokens."""
    left = self_similarity(torch, key, value, settings.similarity)
    columns = torch.zeros(count, len(left), device=key.device)
    for taken in range(count):
        unexplained = torch.where(left < COVERAGE_FLOOR, 0.0, left)
        new = torch.where(alive, unexplained, -1.0).argmax()  # the first of equal ones
        alive[new] = False
        similar = likeness(torch, key, value, new[None], settings.similarity).mean(dim=0)[:, 0]
        column = (similar - columns[:taken, new] @ columns[:taken]) / left[new].clamp(min=COVERAGE_FLOOR).sqrt()
        columns[taken] = torch.where(unexplained[new] > 0, column, 0.0)
        left = left - columns[taken].square()
