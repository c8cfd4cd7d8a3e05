"""CDPruner: the subset that a determinantal point process conditioned on the question finds most likely."""

from __future__ import annotations

import torch
from torch import Tensor

from calibration.studies.rivals.method import unit
from iwp_export.backends.torch.decoder import Condensed, Seen

FLOOR = 1e-6
"""What the least relevant token's relevance is, times the range, so that the kernel has no zero row; the code's."""
EXPLAINED = 1e-12
"""A remaining determinant gain of a token that counts as none: rounding."""


def relevance(features: Tensor, words: Tensor) -> Tensor:
    """Relevance of each visual token to the question, min-max normalised as in CDPruner's code, float32 [n].

    For LLaVA that code takes the cosine of CLIP's image embeddings with its text encoder's of the question, with the
    sign turned round, which the authors report for CLIP alone (issue 14 of the repository). LLaVA's checkpoints for
    transformers hold neither CLIP's text encoder nor its projections. So this is a substitute, and the method is named
    after it: the mean cosine of the projected feature with the word embeddings of the text after the image, in the
    space that both share in the language model. OpenVINO's port (openvino_contrib, genai_optimizations) compares the
    same two, with all of the prompt's text and the sign turned round. If all are equally relevant, each is 1.

    Args:
        features: [n, D]. words: [t, D].
    """
    score = (unit(features) @ unit(words).T).mean(dim=1)
    spread = score.max() - score.min()
    return (score - score.min() + FLOOR) / spread if spread > 0 else torch.ones_like(score)


def most_likely(features: Tensor, weight: Tensor, count: int) -> Tensor:
    """Greedy MAP inference of the conditional DPP with kernel diag(r) L diag(r), L the cosines of the features.

    CDPruner (Q. Zhang et al., arXiv:2506.10967; `encode_images` in github.com/Theia-4869/CDPruner's llava_arch.py):
    each step takes the token that raises the determinant most, by an incremental Cholesky factor.

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
    """Where the paper drops them: before layer 0. As in its code, positions are those of the shorter prompt."""
    rows = choose(seen, count).sort().values
    return Condensed(seen.features[rows], rows)
