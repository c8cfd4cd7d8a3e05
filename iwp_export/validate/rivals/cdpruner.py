"""CDPruner: the subset that a determinantal point process conditioned on the question finds most likely."""

from __future__ import annotations

import torch
from torch import Tensor

from iwp_export.backends.torch.seen import Condensed, Seen
from iwp_export.validate.rivals.method import unit

FLOOR = 1e-6
"""What the least relevant token's relevance is, times the range, so that the kernel has no zero row; the code's."""
EXPLAINED = 1e-12
"""A remaining determinant gain of a token that counts as none: rounding."""


def relevance(features: Tensor, words: Tensor) -> Tensor:
    """Relevance of each visual token to the question, min-max normalised (the paper's Sec. 3.2), float32 [n].

    The paper's LLaVA takes the cosine between CLIP's image embeddings and its text encoder's of the question, with the
    sign turned round, which its author found to be right for CLIP alone (issue 14 of the repository). Checkpoints of
    LLaVA for transformers hold neither CLIP's text encoder nor its projections. So this is a substitute, and the
    method is named after it: the mean cosine between the projected feature and the word embeddings of the
    text after the image, the space that both share in the language model. OpenVINO's port of CDPruner takes the same
    two, of all the prompt's text. If all are equally relevant, each is 1.

    Args:
        features: [n, D]. words: [t, D].
    """
    score = (unit(features) @ unit(words).T).mean(dim=1)
    spread = score.max() - score.min()
    return (score - score.min() + FLOOR) / spread if spread > 0 else torch.ones_like(score)


def most_likely(features: Tensor, weight: Tensor, count: int) -> Tensor:
    """Greedy MAP inference of the conditional DPP with kernel diag(r) L diag(r), L the cosines of the features.

    CDPruner (Q. Zhang et al., arXiv:2506.10967, Sec. 3.3 and Algorithm 1; github.com/Theia-4869/CDPruner): each step
    takes the token that raises the determinant most, by an incremental Cholesky factor.

    Args:
        features: [n, D]. weight: [n], the relevance r. count: of n.

    Returns:
        int64 [count], in the order of choice; ties to the lower index.
    """
    direction = unit(features)
    kernel = weight[:, None] * (direction @ direction.T) * weight
    gain = kernel.diagonal().clone()
    factor = kernel.new_zeros(0, len(kernel))
    chosen: list[int] = []
    while len(chosen) < count:
        token = int(gain.argmax())
        rest = kernel[token] - factor[:, token] @ factor
        column = rest / gain[token].sqrt() if gain[token] > EXPLAINED else torch.zeros_like(rest)
        factor = torch.cat([factor, column[None]])
        gain = gain - column.square()
        chosen.append(token)
        gain[chosen] = -torch.inf
    return torch.tensor(chosen)


def choose(seen: Seen, count: int) -> Tensor:
    """The tokens that the paper's rule chooses before layer 0, dropped at the pruning layer, with their positions."""
    return most_likely(seen.features, relevance(seen.features, seen.words), count)


def condense(seen: Seen, count: int) -> Condensed:
    """Where the paper drops them: before layer 0."""
    rows = choose(seen, count).sort().values
    return Condensed(seen.features[rows], rows)
