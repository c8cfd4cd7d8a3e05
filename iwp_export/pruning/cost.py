"""What a prefill costs by its operations, and what pruning saves of them.

Counted are the products of matrices: projections, MLPs, attention and the head. Not counted are attention's softmax,
which adds to what is saved, and the choice of tokens, which takes from it: docs/results.md has what they make.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PrefillCost:
    """Multiply-adds of a language model's prefill of one prompt.

    Attributes:
        layers, hidden, inner: of the language model; `inner` is the width of its gated MLP.
        query, key_value: width of all query heads, and of all key/value heads.
        vocabulary: rows of the head, which runs for the last token alone.
        visual, text: tokens of the prompt.
    """

    layers: int
    hidden: int
    inner: int
    query: int
    key_value: int
    vocabulary: int
    visual: int
    text: int

    @classmethod
    def of(cls, text_config: Any, visual: int, text: int) -> PrefillCost:
        """Of a transformers language model's configuration and a prompt."""
        heads = text_config.num_attention_heads
        head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
        return cls(
            layers=text_config.num_hidden_layers,
            hidden=text_config.hidden_size,
            inner=text_config.intermediate_size,
            query=heads * head_dim,
            key_value=text_config.num_key_value_heads * head_dim,
            vocabulary=text_config.vocab_size,
            visual=visual,
            text=text,
        )

    def operations(self, layer: int, kept: int) -> int:
        """Multiply-adds when `kept` visual tokens go on from layer `layer`, which projects all of them."""
        full, left = self.visual + self.text, kept + self.text
        body = layer * self._layer(full, full) + self._layer(full, left)
        return body + (self.layers - layer - 1) * self._layer(left, left) + self.hidden * self.vocabulary

    def speedup(self, layer: int, kept: int) -> float:
        """Operations of the unpruned prefill over those of the pruned one."""
        return self.operations(layer, self.visual) / self.operations(layer, kept)

    def kept_for(self, layer: int, speedup: float) -> int | None:
        """The most visual tokens that may go on for a speed-up, 1 at least; None if no number gives it."""
        counts = range(1, self.visual + 1)  # their speed-ups fall
        return bisect_right(counts, -speedup, key=lambda kept: -self.speedup(layer, kept)) or None

    def _layer(self, projected: int, tokens: int) -> int:
        """One layer that projects `projected` tokens and goes on with `tokens`."""
        projections = projected * self.hidden * (self.query + 2 * self.key_value) + tokens * self.query * self.hidden
        return projections + tokens * 3 * self.hidden * self.inner + 2 * tokens**2 * self.query
