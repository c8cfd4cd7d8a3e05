"""Other ways to choose visual tokens, to compare IWP with at the same layer, budget and prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from iwp_export.pruning.settings import PruningSettings
from iwp_export.pruning.torch_select import Select, kept_index

Choose = Callable[[Tensor, int], Tensor]
"""(features [n, D] of the visual tokens, how many) -> indices of the chosen ones, in any order."""


@dataclass(frozen=True)
class Method:
    """A way to choose: `settings` (its query and scores), and for methods that are no variant of IWP, `choose`."""

    settings: PruningSettings
    choose: Choose | None = None

    def select(self, features: Tensor) -> Select:
        """The pruning op for one call whose image features are [n, D]."""

        def run(importance: Tensor, key: Tensor, value: Tensor, visual: Tensor, num_kept: Tensor) -> Tensor:
            if self.choose is None:
                return kept_index(importance, key, value, visual, int(num_kept[0]), self.settings)
            keep = ~visual[0]
            places = torch.nonzero(visual[0])[:, 0]
            budget = int(num_kept[0]) - int(keep.sum())
            keep[places[self.choose(features, budget) if budget < len(places) else slice(None)]] = True
            return torch.nonzero(keep)[:, 0][None]

        return run


def methods(settings: PruningSettings, seed: int = 0) -> Mapping[str, Method]:
    """IWP and its rivals, by name.

    - `iwp`, and `iwp raw` with Eq. 10's kernels not divided by each head's sum;
    - `magnitude`: IWP without duplication;
    - `last attention`: attention of the last text token in the pruning layer, FastV's criterion one layer later;
    - `diverse`: greedy max-min distance of the projected features, DivPrune's criterion inside the language model;
    - `grid`: evenly spaced places; `random`: chance.

    Args:
        settings: IWP's.
        seed: of `random`.
    """
    attention = replace(
        settings, query="last", importance="kernel", heads="softmax", rope_in_importance=True, penalty=0.0
    )
    generator = torch.Generator().manual_seed(seed)
    return {
        "iwp": Method(settings),
        "iwp raw": Method(replace(settings, heads="raw")),
        "magnitude": Method(replace(settings, penalty=0.0)),
        "last attention": Method(attention),
        "diverse": Method(settings, choose_diverse),
        "grid": Method(settings, choose_grid),
        "random": Method(settings, lambda features, count: torch.randperm(len(features), generator=generator)[:count]),
    }


def choose_diverse(features: Tensor, count: int) -> Tensor:
    """The greedy max-min subset by cosine distance (DivPrune, arXiv:2503.02175), beginning with the most isolated."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    distance = 1 - unit @ unit.T
    distance.fill_diagonal_(torch.inf)
    chosen = [int(distance.min(dim=1).values.argmax())]
    nearest = distance[chosen[0]].clone()
    while len(chosen) < count:
        nearest[chosen] = -torch.inf
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distance[chosen[-1]])
    return torch.tensor(chosen[:count])


def choose_grid(features: Tensor, count: int) -> Tensor:
    """`count` cells spread evenly over a square grid of tokens, or over the tokens in their order if they are none."""
    side = round(len(features) ** 0.5)
    if side**2 != len(features):
        return torch.from_numpy(np.linspace(0, len(features) - 1, count).round().astype(int))
    rows = max(1, round(count**0.5))
    per_row = -(-count // rows)
    centres = [
        int((i + 0.5) * side / rows) * side + int((j + 0.5) * side / per_row)
        for i in range(rows)
        for j in range(per_row)
    ]
    spread = np.linspace(0, len(centres) - 1, count).round().astype(int)
    return torch.tensor([centres[i] for i in spread])
