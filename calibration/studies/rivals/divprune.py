"""DivPrune: the most diverse subset of the image features."""

from __future__ import annotations

import torch
from torch import Tensor

from calibration.studies.rivals.method import unit
from iwp_export.backends.torch.decoder import Condensed, Seen


def most_diverse(features: Tensor, count: int) -> Tensor:
    """Greedy solution of the max-min diversity problem over cosine distances.

    DivPrune (S. R. Alvar et al., arXiv:2503.02175; `DivPrune` in github.com/vbdi/divprune's llava_arch.py): the first
    token is the one whose nearest neighbour is farthest; each next one is the farthest from its nearest chosen one.

    Args:
        features: [n, D], the projected image features. count: of n.

    Returns:
        int64 [count], in the order of choice; ties to the lower index.
    """
    direction = unit(features)
    distance = 1 - direction @ direction.T
    distance.fill_diagonal_(torch.inf)
    chosen = [int(distance.min(dim=1).values.argmax())]
    nearest = distance[chosen[0]].clone()
    while len(chosen) < count:
        nearest[chosen] = -torch.inf
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distance[chosen[-1]])
    return torch.tensor(chosen[:count])


def choose(seen: Seen, count: int) -> Tensor:
    """The same tokens as in the paper, dropped at the pruning layer in the place of layer 0, with their positions."""
    return most_diverse(seen.features, count)


def condense(seen: Seen, count: int) -> Condensed:
    """Where the paper drops them: before layer 0. The budget is IWP's ceil(keep * n); the paper's code rounds.

    As in that code, the language model counts the positions of the shorter prompt.
    """
    rows = most_diverse(seen.features, count).sort().values
    return Condensed(seen.features[rows], rows)
