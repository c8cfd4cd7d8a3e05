"""DART: the tokens least like a few pivots."""

from __future__ import annotations

import torch
from torch import Tensor

from calibration.studies.rivals.method import largest, layers_of, unit
from iwp_export.backends.torch.decoder import Seen

PIVOTS = 4
"""Pivots among the visual tokens, and as many among the text after them: the code's `pivot_image_token` and
`pivot_text_token`."""


def least_duplicated(
    hidden: Tensor, key_size: Tensor, visual: Tensor, text: Tensor, count: int, pivots: int = PIVOTS
) -> Tensor:
    """Pivots by the size of their keys, and for each pivot the visual tokens that are least like it.

    Args:
        hidden: [S, D], whose cosines measure duplication.
        key_size: [S], L1 norms of the tokens' keys.
        visual: int64 [n], places of the visual tokens. text: int64 [t], of those of the text that may be pivots.
        count: visual tokens to choose.
        pivots: of each kind, at most.

    Returns:
        int64 [count] indices into `visual`: the visual pivots, then an equal share for each visual pivot and each text
        pivot in turn, larger keys first. Ties to the lower index.
    """
    chosen = largest(key_size[visual], min(pivots, count)).tolist()
    by_text = text[largest(key_size[text], pivots)].tolist()
    all_pivots = visual[chosen].tolist() + by_text
    rest = count - len(chosen)
    direction = unit(hidden)
    for number, pivot in enumerate(all_pivots):
        share = -(-rest // (len(all_pivots) - number))
        duplication = direction[visual] @ direction[pivot]
        duplication[chosen] = torch.inf
        chosen += largest(-duplication, share).tolist()
        rest -= share
    return torch.tensor(chosen)


def choose(seen: Seen, count: int) -> Tensor:
    """DART (Z. Wen et al., arXiv:2502.11494; `get_retained_image_token` in github.com/ZichenWen1/DART).

    Its `pruned_layer` K is our `layer`: pivots have the largest L1 norm of the keys (all heads, after RoPE) of layer
    K - 1, and duplication is the cosine of the hidden states that layer K is given.

    What differs: the code applies the model's final norm to those hidden states before it compares them, here they
    are compared as they are. The code keeps a multiple of the number of pivots beside the pivots; here the budget is
    met exactly. It goes through the pivots in the order of a Python set; here visual ones come first, larger ones
    before smaller ones.
    """
    below, at = layers_of(seen)
    size = below.rotated_key[0].float().abs().sum(dim=(0, 2))
    visual = torch.nonzero(seen.visual)[:, 0]
    text = torch.nonzero(~seen.visual)[:, 0]
    return least_duplicated(at.hidden[0], size, visual, text[text > visual[-1]], count)
