"""The speed-up that a prefill's multiply-adds promise, from an artefact's manifest alone."""

from __future__ import annotations

from collections.abc import Sequence

from iwp_export.bundle.manifest import Manifest
from iwp_export.pruning.cost import PrefillCost


def promised_speedup(manifest: Manifest, prompts: Sequence[tuple[int, int, int]]) -> float:
    """Multiply-adds of unpruned prefills over those of pruned ones.

    Args:
        manifest: the artefact's.
        prompts: visual tokens, text tokens, and visual tokens that stay, of each prompt.
    """
    decoder, layer = manifest.decoder, manifest.pruning.layer
    whole = pruned = 0
    for visual, text, kept in prompts:
        cost = PrefillCost(
            layers=decoder.layers,
            hidden=decoder.hidden_size,
            inner=decoder.intermediate_size,
            query=decoder.heads * decoder.head_dim,
            key_value=decoder.kv_heads * decoder.head_dim,
            vocabulary=decoder.vocab_size,
            visual=visual,
            text=text,
        )
        whole += cost.operations(layer, visual)
        pruned += cost.operations(layer, kept)
    return whole / pruned
