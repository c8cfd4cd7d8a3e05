"""The speed-up that a prefill's multiply-adds promise, from an artefact's manifest alone."""

from __future__ import annotations

from collections.abc import Sequence

from iwp_export.bundle.manifest import Manifest
from iwp_export.pruning.cost import PrefillCost

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
STEP = 16
"""Widths of MLPs are multiples of it."""


def promised_speedup(manifest: Manifest, prompts: Sequence[tuple[int, int, int]]) -> float | None:
    """Multiply-adds of unpruned prefills over those of pruned ones; None if the manifest does not tell enough.

    Args:
        manifest: the artefact's.
        prompts: visual tokens, text tokens, and visual tokens that stay, of each prompt.
    """
    inner = mlp_width(manifest)
    if inner is None:
        return None
    decoder, layer = manifest.decoder, manifest.pruning.layer
    whole = pruned = 0
    for visual, text, kept in prompts:
        cost = PrefillCost(
            layers=decoder.layers,
            hidden=decoder.hidden_size,
            inner=inner,
            query=decoder.heads * decoder.head_dim,
            key_value=decoder.kv_heads * decoder.head_dim,
            vocabulary=decoder.vocab_size,
            visual=visual,
            text=text,
        )
        whole += cost.operations(layer, visual)
        pruned += cost.operations(layer, kept)
    return whole / pruned


def mlp_width(manifest: Manifest) -> int | None:
    """Width of the gated MLPs, which the manifest does not hold: it follows from the size of the decoder's weights.

    The embedding and the head may be one tensor or two; of the two widths that follow, the rounder one is right. Biases
    and padding between tensors change neither by a unit. None where the manifest does not list the file, or no width
    fits.
    """
    decoder = manifest.decoder
    graph = manifest.graphs.get("decoder")
    file = None if graph is None else manifest.files.get(graph.weights)
    if file is None:
        return None
    hidden, vocabulary = decoder.hidden_size, decoder.vocab_size
    query, key_value = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    attention = decoder.layers * (hidden * (query + 2 * key_value) + query * hidden)
    norms = (2 * decoder.layers + 1) * hidden
    rest = file.bytes / ITEM_BYTES[decoder.dtype] - attention - norms
    widths = [(rest - copies * hidden * vocabulary) / (3 * hidden * decoder.layers) for copies in (2, 1)]
    best = min(widths, key=lambda width: abs(width - STEP * round(width / STEP)))
    return round(best) if best >= 1 else None
