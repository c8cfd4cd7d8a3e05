"""What a way to choose visual tokens may look at in one call, and what it may give back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from iwp_export.pruning.torch_select import Select


@dataclass(frozen=True)
class LayerSeen:
    """What one decoder layer computed of a call's S tokens, each of which it saw.

    Attributes:
        hidden: [1, S, D], the layer's input before its norm.
        query, key: [1, H, S, d] and [1, Hkv, S, d], before RoPE.
        rotated_query, rotated_key: the same after RoPE.
        past_key: [1, Hkv, P, d], rotated keys of earlier calls.
    """

    hidden: Tensor
    query: Tensor
    key: Tensor
    rotated_query: Tensor
    rotated_key: Tensor
    past_key: Tensor


Watch = Callable[[int, LayerSeen], None]
"""(index of a decoder layer, what it computed), called before the layer's attention."""


@dataclass(frozen=True)
class TowerSeen:
    """What a vision tower with a class token computed of one image; the class token comes first.

    Attributes:
        hidden: [1 + n, C], the hidden states that the projector takes.
        query, key: [heads, 1 + n, d] of the layer that made them.
        project: from hidden states [m, C] to features [m, D] of the language model.
    """

    hidden: Tensor
    query: Tensor
    key: Tensor
    project: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Seen:
    """What a way to choose may look at in one call.

    Attributes:
        features: [n, D], the image features of the call's visual tokens, in their order.
        visual: bool [S], true at the call's visual tokens.
        words: [t, D], word embeddings of the text after the call's last image; of all its text if none follows.
        towers: runs the vision tower again: one entry an image.
        below: the layer before the pruning layer; None where there is none, and before layer 0.
        at: the pruning layer, which sees every token as yet; None before layer 0.
    """

    features: Tensor
    visual: Tensor
    words: Tensor
    towers: Callable[[], tuple[TowerSeen, ...]]
    below: LayerSeen | None = None
    at: LayerSeen | None = None


@dataclass(frozen=True)
class Condensed:
    """The features that stand for an image before layer 0.

    Attributes:
        features: [m, D], in the order in which the language model reads them.
        rows: int64, ascending: rows of the image's own features that stand among them, as they are or with others
            merged in.
    """

    features: Tensor
    rows: Tensor


SelectFor = Callable[[Seen], Select]
"""The pruning op of a call, from what it may look at."""

Condense = Callable[[Seen, int], Condensed]
"""(a call with one image, number of features m < n) -> the features that stand for it before layer 0."""
