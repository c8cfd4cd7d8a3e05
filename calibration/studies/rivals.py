"""Other ways to choose visual tokens, to compare IWP with at the same budget and prompts: each by its paper's rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from calibration.studies.seen import Condensed, LayerSeen, Method, Seen, TowerSeen
from iwp_export.errors import SettingsError
from iwp_export.pruning.settings import PruningSettings

BEFORE = " before layer 0"
"""Ends the name of a method that runs where its paper runs it, in the place of the pruning layer."""


def methods(settings: PruningSettings, seed: int = 0) -> Mapping[str, Method]:
    """IWP and its rivals, by name.

    - `iwp`, and `iwp raw` with Eq. 10's kernels not divided by each head's sum;
    - `magnitude`: IWP without duplication;
    - `last attention`: the importance of that name, the attention of the last token in the pruning layer;
    - `fastv`, `dart`, `pact` (its pruning part): where their papers drop tokens, at a layer of the language model;
    - `divprune`, `cdpruner (relevance by word embeddings)`, `visionzip (dominant tokens alone)`: the tokens that
      their papers' rules choose before layer 0, dropped at the pruning layer as every other method's are;
    - the same names with ` before layer 0`: where their papers drop them. All layers read fewer tokens then, so
      that the same budget is cheaper than at a later layer. `visionzip` merges tokens and runs there alone;
    - `grid`: evenly spaced places; `random`: chance.

    Args:
        settings: IWP's.
        seed: of `random`.
    """
    by_words = "cdpruner (relevance by word embeddings)"
    return {
        "iwp": Method(settings),
        "iwp raw": Method(settings.with_changes(heads="raw")),
        "magnitude": Method(settings.with_changes(penalty=0.0, select="mmr")),
        "last attention": Method(settings.with_changes(importance="last_attention")),
        "fastv": Method(settings, fastv, needs=("layer below",)),
        "dart": Method(settings, dart, needs=("layer below",)),
        "pact": Method(settings, pact),
        "divprune": Method(settings, divprune),
        "divprune" + BEFORE: Method(settings, condense=divprune_before),
        by_words: Method(settings, cdpruner),
        by_words + BEFORE: Method(settings, condense=cdpruner_before),
        "visionzip (dominant tokens alone)": Method(settings, visionzip, needs=("class token",)),
        "visionzip" + BEFORE: Method(settings, condense=visionzip_before, needs=("class token",)),
        "grid": Method(settings, grid),
        "random": Method(settings, at_random(seed)),
    }


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


def divprune(seen: Seen, count: int) -> Tensor:
    """The same tokens as in the paper, dropped at the pruning layer in the place of layer 0, with their positions."""
    return most_diverse(seen.features, count)


def divprune_before(seen: Seen, count: int) -> Condensed:
    """Where the paper drops them: before layer 0. The budget is IWP's ceil(keep * n); the paper's code rounds.

    As in that code, the language model counts the positions of the shorter prompt.
    """
    rows = most_diverse(seen.features, count).sort().values
    return Condensed(seen.features[rows], rows)


RELEVANCE_FLOOR = 1e-6
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
    return (score - score.min() + RELEVANCE_FLOOR) / spread if spread > 0 else torch.ones_like(score)


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


def cdpruner(seen: Seen, count: int) -> Tensor:
    """The tokens that the paper's rule chooses before layer 0, dropped at the pruning layer, with their positions."""
    return most_likely(seen.features, relevance(seen.features, seen.words), count)


def cdpruner_before(seen: Seen, count: int) -> Condensed:
    """Where the paper drops them: before layer 0. As in its code, positions are those of the shorter prompt."""
    rows = cdpruner(seen, count).sort().values
    return Condensed(seen.features[rows], rows)


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


def visionzip_before(seen: Seen, count: int) -> Condensed:
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


def visionzip(seen: Seen, count: int) -> Tensor:
    """Dominant tokens alone, `count` of them and no class token, dropped at the pruning layer with their positions.

    Not the paper's method but its criterion on equal terms with the others.
    """
    return largest(torch.cat([class_attention(tower) for tower in seen.towers()]), count)


def last_attention(layer: LayerSeen) -> Tensor:
    """Attention of a call's last token, mean over the heads, over the earlier calls' and its own tokens, [P + S].

    The softmax runs over the whole sequence, text too, so heads that look elsewhere weigh less.
    """
    key = torch.cat([layer.past_key, layer.rotated_key], dim=2)[0].float()
    query = layer.rotated_query[0, :, -1].float()
    key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    logits = (key @ query[..., None])[..., 0] / query.shape[-1] ** 0.5
    return logits.softmax(dim=-1).mean(dim=0)


def fastv(seen: Seen, count: int) -> Tensor:
    """FastV (L. Chen et al., arXiv:2403.06764; `fastv_forward` in github.com/pkunlp-icler/FastV's modeling_llama.py).

    Its `K` is our `layer` and its `R` is 1 - `keep`: at the input of the layer with index K, counted from 0, the share
    R of the image tokens with the least attention is dropped. The score is that of layer K - 1, in which every token
    still takes part: the attention that a token gets from the last one, mean over the heads. With K = 0 there is no
    such layer, which is an error. Kept tokens keep their positions, as in FastV's code.

    What differs: the number kept is ceil((1 - R) * n), the code rounds; and tokens are chosen once for a prompt, as
    in FastV's own version with a key/value cache, while the one without chooses again for each generated token. The
    control `last attention` looks at layer K itself.
    """
    below, _ = seen.layers()
    return largest(last_attention(below)[-len(seen.visual) :][seen.visual], count)


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


def dart(seen: Seen, count: int) -> Tensor:
    """DART (Z. Wen et al., arXiv:2502.11494; `get_retained_image_token` in github.com/ZichenWen1/DART).

    Its `pruned_layer` K is our `layer`: pivots have the largest L1 norm of the keys (all heads, after RoPE) of layer
    K - 1, and duplication is the cosine of the hidden states that layer K is given.

    What differs: the code applies the model's final norm to those hidden states before it compares them, here they
    are compared as they are. The code keeps a multiple of the number of pivots beside the pivots; here the budget is
    met exactly. It goes through the pivots in the order of a Python set; here visual ones come first, larger ones
    before smaller ones.
    """
    below, at = seen.layers()
    size = below.rotated_key[0].float().abs().sum(dim=(0, 2))
    visual = torch.nonzero(seen.visual)[:, 0]
    text = torch.nonzero(~seen.visual)[:, 0]
    return least_duplicated(at.hidden[0], size, visual, text[text > visual[-1]], count)


def global_importance(hidden: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Attention of the mean query, mean over the heads, times the size of the hidden state, float32 [n].

    Args:
        hidden: [n, D] of the visual tokens. query: [H, n, d] and key: [Hkv, n, d], before RoPE.
    """
    mean = query.float().mean(dim=1, keepdim=True)
    key = key.float().repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    attention = (mean @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(dim=-1)
    return attention[:, 0].mean(dim=0) * hidden.float().norm(dim=-1)


def pact(seen: Seen, count: int) -> Tensor:
    """EUTI, the first part of PACT (M. Dhouib et al., arXiv:2504.08966; github.com/orailix/PACT's modeling_qwen2.py).

    At the input of the pruning layer (4 in its settings, as in IWP) each visual token scores the softmax of its key
    against the mean of the visual tokens' queries, both before RoPE, mean over the heads, times the L2 norm of its
    hidden state.

    What differs: the code lets the text before the last visual token take part in mean and softmax too. PACT's second
    part, which clusters what is left and merges it, is not here: it has no budget but a distance, and it changes
    hidden states.
    """
    if seen.at is None:
        raise SettingsError("PACT scores tokens inside the language model, not before it")
    at, visual = seen.at, seen.visual
    return largest(global_importance(at.hidden[0, visual], at.query[0][:, visual], at.key[0][:, visual]), count)


def grid(seen: Seen, count: int) -> Tensor:
    """`count` cells spread evenly over a square grid of tokens, or over the tokens in their order if they are none."""
    number = len(seen.features)
    side = round(number**0.5)
    if side**2 != number:
        return torch.from_numpy(np.linspace(0, number - 1, count).round().astype(int))
    rows = max(1, round(count**0.5))
    per_row = -(-count // rows)
    centres = [
        int((i + 0.5) * side / rows) * side + int((j + 0.5) * side / per_row)
        for i in range(rows)
        for j in range(per_row)
    ]
    spread = np.linspace(0, len(centres) - 1, count).round().astype(int)
    return torch.tensor([centres[i] for i in spread])


def at_random(seed: int) -> Callable[[Seen, int], Tensor]:
    """Chance, from one generator for all calls."""
    generator = torch.Generator().manual_seed(seed)
    return lambda seen, count: torch.randperm(len(seen.features), generator=generator)[:count]


def largest(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest of [n] scores, ties to the lower index."""
    return torch.sort(scores, descending=True, stable=True).indices[:count]


def unit(x: Tensor) -> Tensor:
    """Rows of length 1 in float32; a zero row stays."""
    return torch.nn.functional.normalize(x.float(), dim=-1)
