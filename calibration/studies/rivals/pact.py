"""PACT's pruning part, EUTI: an importance without attention maps."""

from __future__ import annotations

from torch import Tensor

from calibration.studies.rivals.method import largest
from iwp_export.backends.torch.decoder import Seen
from iwp_export.errors import SettingsError


def global_importance(hidden: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Attention of the mean query, mean over the heads, times the size of the hidden state, float32 [n].

    Args:
        hidden: [n, D] of the visual tokens. query: [H, n, d] and key: [Hkv, n, d], before RoPE.
    """
    mean = query.float().mean(dim=1, keepdim=True)
    key = key.float().repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    attention = (mean @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(dim=-1)
    return attention[:, 0].mean(dim=0) * hidden.float().norm(dim=-1)


def choose(seen: Seen, count: int) -> Tensor:
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
