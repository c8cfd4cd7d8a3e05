"""Proof that tokens were dropped: what the caches hold after a prompt and a decode step."""

from __future__ import annotations

import math

import numpy as np

from iwp_export.backends.session import Ints
from iwp_export.latency.figures import Dropped
from iwp_export.latency.requests import prepare
from iwp_export.latency.workload import Ask
from iwp_export.runtime.generate import TEXT, Call, build_decode
from iwp_export.runtime.model import LoadedModel
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.sampling import greedy

CLOSE = 0.02
"""Of the largest: between the keys of one token in two runs. Shapes differ, and with them the order of sums, in
half precision too; the keys of different tokens differ by far more."""
READ_BACK = "read back from the backend's buffers"


def prove_dropped(pipeline: Pipeline, ask: Ask, keep: float) -> tuple[Dropped, Dropped]:
    """Run a prompt and a decode step at `keep` and at 1, and look at the caches.

    Keys and values of the pruning layer must also be those that the unpruned cache holds of the kept tokens: that layer
    projects all tokens, and then drops some.

    Returns:
        The pruned side and the unpruned one.
    """
    pruned, unpruned = _Filled(pipeline, ask, keep), _Filled(pipeline, ask, 1.0)
    layer = pipeline.manifest.pruning.layer
    return pruned.dropped("pruned", _foreign(pruned, unpruned, layer)), unpruned.dropped("unpruned", "")


class _Filled:
    """A cache after a prompt at a keep ratio and a decode step."""

    def __init__(self, pipeline: Pipeline, ask: Ask, keep: float) -> None:
        self.session = pipeline.session
        model = LoadedModel(pipeline.manifest, pipeline.processor, self.session)
        call = prepare(model, ask, keep)
        output = call.run(self.session, [model.features(picture) for picture in call.pictures])
        self.kept: Ints = output.kept_index
        self.cache = call.context.cache
        positions, after = model.family.positions(TEXT, (), call.next_position)
        Call(call.context, build_decode(greedy(output.logits), positions), next_position=after).run(self.session)
        visual = sum(picture.num_tokens for picture in call.pictures)
        prompt, decoder, layer = call.inputs.input_ids.size, pipeline.manifest.decoder, pipeline.manifest.pruning.layer
        # counted here, not by `num_keep`, whose mistakes would otherwise be on both sides
        left = prompt - visual + min(visual, max(1, math.ceil(keep * visual - 1e-9))) if visual else prompt
        self.expected = tuple(prompt + 1 if index < layer else left + 1 for index in range(decoder.layers))

    def dropped(self, side: str, flaw: str) -> Dropped:
        """What was found."""
        found = tuple(self.session.read_cache(self.cache, layer)[0].shape[1] for layer in range(len(self.expected)))
        return Dropped(side, self.expected, found, READ_BACK, flaw)


def _foreign(pruned: _Filled, unpruned: _Filled, layer: int) -> str:
    """What is wrong with the keys and values that the pruned cache holds at the pruning layer; empty if nothing is."""
    sides = (side.session.read_cache(side.cache, layer) for side in (pruned, unpruned))
    for name, left, whole in zip(("key", "value"), *sides, strict=True):
        rows, wanted = left[:, : len(pruned.kept)], whole[:, pruned.kept]
        if rows.shape != wanted.shape:
            return f"layer {layer} holds {left.shape[1]} {name}s, {len(pruned.kept)} tokens were kept"
        away = np.abs(rows - wanted).max(axis=(0, 2), initial=0.0)
        worst = int(np.argmax(away))
        if not away[worst] <= CLOSE * float(np.abs(wanted).max()):  # NaN is wrong too
            return f"layer {layer} holds at row {worst} another {name} than that of token {int(pruned.kept[worst])}"
    return ""
