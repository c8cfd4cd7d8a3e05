"""What the queries of one layer attend to: how widely, and how much of it is visual."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from iwp_export.backends.torch.decoder import Projected, Stream


@dataclass(frozen=True)
class Attention:
    """A layer's attention weights; means over heads and queries.

    Attributes:
        entropy: in nats.
        visual: share of the weight that is on visual tokens.
        seen: visual tokens that the layer sees.
    """

    entropy: float
    visual: float
    seen: int


def look_at(stream: Stream, projected: Projected, prompt: int, scaling: float) -> Attention:
    """The attention of the prompt's text tokens after the first visual token; of its last token if none follows.

    Args:
        stream: the tokens that the layer sees, of one call from the first token on.
        projected: the layer's projections of them.
        prompt: how many of them are the prompt's, which come first.
        scaling: the factor of the scores before softmax.
    """
    visual = stream.feature_index[0] >= 0
    places = torch.arange(len(visual), device=visual.device)
    first = int(places[visual][0]) if visual.any() else 0
    queries = places[~visual & (places > first) & (places < prompt)]
    queries = queries if len(queries) else places[prompt - 1 : prompt]
    query, key = projected.rotated_query[0].float(), projected.rotated_key[0].float()
    ahead = places[None] > queries[:, None]
    entropies, shares = [], []
    for head, own in enumerate(query):  # one at a time: a long prompt's weights of all heads fill the memory
        scores = own[queries] @ key[head * len(key) // len(query)].T * scaling
        weights = torch.softmax(scores.masked_fill(ahead, -torch.inf), -1)
        entropies.append(_entropy(weights))
        shares.append(weights[:, visual].sum(-1).mean())
    return Attention(float(torch.stack(entropies).mean()), float(torch.stack(shares).mean()), int(visual.sum()))


def _entropy(weights: Tensor) -> Tensor:
    """Mean over rows of weights [Q, S], in nats; a weight of 0 adds nothing."""
    return torch.special.entr(weights).sum(-1).mean()
