"""What every way to choose visual tokens is made of, and what it may need of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from iwp_export.backends.torch import session as tower
from iwp_export.backends.torch.decoder import Condense, LayerSeen, Seen
from iwp_export.errors import SettingsError
from iwp_export.pruning.settings import PruningSettings
from iwp_export.pruning.torch_select import Select, kept_index

Choose = Callable[[Seen, int], Tensor]
"""(what can be seen at the pruning layer, how many) -> indices of the chosen visual tokens, in any order."""
Need = Literal["layer below", "class token"]


@dataclass(frozen=True)
class Method:
    """A way to choose. Without `choose` and `condense` it is IWP with its settings.

    Attributes:
        settings: where it drops tokens; for variants of IWP its scores too.
        choose: which visual tokens go on past the pruning layer.
        condense: for methods that work before layer 0: the features that stand for the image from there on.
        needs: what it needs of the model and the layer.
    """

    settings: PruningSettings
    choose: Choose | None = None
    condense: Condense | None = None
    needs: tuple[Need, ...] = ()

    def select(self, seen: Seen) -> Select:
        """The pruning op for one call."""

        def run(importance: Tensor, key: Tensor, value: Tensor, visual: Tensor, num_kept: Tensor) -> Tensor:
            keep = ~visual[0]
            budget, places = int(num_kept[0]) - int(keep.sum()), torch.nonzero(visual[0])[:, 0]
            if budget == len(places):
                return torch.arange(visual.shape[1])[None]
            if self.choose is None:
                return kept_index(importance, key, value, visual, int(num_kept[0]), self.settings)
            keep[places[self.choose(seen, budget)]] = True
            return torch.nonzero(keep)[:, 0][None]

        return run

    def refusal(self, model: Any) -> str | None:
        """Why it cannot be run on a transformers model; None where it can."""
        if "layer below" in self.needs and self.settings.layer == 0:
            return "it needs the layer before the pruning layer: choose layer 1 or more"
        return tower.refusal(model) if "class token" in self.needs else None


def layers_of(seen: Seen) -> tuple[LayerSeen, LayerSeen]:
    """The layer before the pruning layer, and that layer.

    Raises:
        SettingsError: tokens are dropped at layer 0.
    """
    if seen.below is None or seen.at is None:
        raise SettingsError("the method needs the layer before the pruning layer: choose layer 1 or more")
    return seen.below, seen.at


def largest(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest of [n] scores, ties to the lower index."""
    return torch.sort(scores, descending=True, stable=True).indices[:count]


def unit(x: Tensor) -> Tensor:
    """Rows of length 1 in float32; a zero row stays."""
    return torch.nn.functional.normalize(x.float(), dim=-1)
