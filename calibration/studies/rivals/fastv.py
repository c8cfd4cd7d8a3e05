"""FastV: the visual tokens that the last token attends to most, one layer earlier."""

from __future__ import annotations

import torch
from torch import Tensor

from calibration.studies.rivals.method import largest, layers_of
from iwp_export.backends.torch.decoder import LayerSeen, Seen


def last_attention(layer: LayerSeen) -> Tensor:
    """Attention of a call's last token, mean over the heads, over the earlier calls' and its own tokens, [P + S].

    The softmax runs over the whole sequence, text too, so heads that look elsewhere weigh less.
    """
    key = torch.cat([layer.past_key, layer.rotated_key], dim=2)[0].float()
    query = layer.rotated_query[0, :, -1].float()
    key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    logits = (key @ query[..., None])[..., 0] / query.shape[-1] ** 0.5
    return logits.softmax(dim=-1).mean(dim=0)


def choose(seen: Seen, count: int) -> Tensor:
    """FastV (L. Chen et al., arXiv:2403.06764; `fastv_forward` in github.com/pkunlp-icler/FastV's modeling_llama.py).

    Its `K` is our `layer` and its `R` is 1 - `keep`: at the input of the layer with index K, counted from 0, the share
    R of the image tokens with the least attention is dropped. The score is that of layer K - 1, in which every token
    still takes part: the attention that a token gets from the last one, mean over the heads. With K = 0 there is no
    such layer, which is an error. Kept tokens keep their positions, as in FastV's code.

    What differs: the number kept is ceil((1 - R) * n), the code rounds; and tokens are chosen once for a prompt, as
    in FastV's own version with a key/value cache, while the one without chooses again for each generated token. The
    control `last attention` looks at layer K itself.
    """
    below, _ = layers_of(seen)
    return largest(last_attention(below)[-len(seen.visual) :][seen.visual], count)
