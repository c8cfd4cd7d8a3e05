"""Proof that tokens were dropped: what the caches hold after a prompt and a decode step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from iwp_export.backends.session import Cache, Ints, Session
from iwp_export.runtime.generate import TEXT, Call
from iwp_export.runtime.model import LoadedModel
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.request import build_decode
from iwp_export.runtime.sampling import greedy
from iwp_export.validate.latency.figures import Dropped
from iwp_export.validate.latency.requests import prepare
from iwp_export.validate.latency.workload import Ask

CLOSE = 0.02
"""Of the largest key: between the keys of one token in two runs. Shapes differ, and with them the order of sums, in
half precision too; the keys of different tokens differ by far more."""
READ_BACK, BELIEVED = "read back from the backend's buffers", "as the session reports them"


def prove_dropped(pipeline: Pipeline, ask: Ask, keep: float) -> tuple[Dropped, Dropped]:
    """Run a prompt and a decode step at `keep` and at 1, and look at the caches.

    Where the backend's buffers can be read, the pruned cache's keys of the pruning layer must also be those that the
    unpruned cache holds of the kept tokens: that layer projects all tokens, and then drops some.

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
        keys = [read_key(self.session, self.cache, layer) for layer in range(len(self.expected))]
        read = [key.shape[2] for key in keys if key is not None]
        if len(read) == len(keys):
            return Dropped(side, self.expected, tuple(read), READ_BACK, flaw)
        return Dropped(side, self.expected, tuple(self.cache.lengths), BELIEVED, flaw)


def read_key(session: Session, cache: Cache, layer: int) -> npt.NDArray[Any] | None:
    """Keys [1, H, K, d] of a layer from the backend's buffers; None where it does not give them."""
    read = getattr(session, "read_cache", None)
    return None if read is None else read(cache, layer)[0]


def _foreign(pruned: _Filled, unpruned: _Filled, layer: int) -> str:
    """What is wrong with the keys that the pruned cache holds; empty if nothing is, or they cannot be read."""
    left, whole = (read_key(side.session, side.cache, layer) for side in (pruned, unpruned))
    if left is None or whole is None:
        return ""
    rows, wanted = left[:, :, : len(pruned.kept)], whole[:, :, pruned.kept]
    if rows.shape != wanted.shape:
        return f"layer {layer} holds keys {list(left.shape)}, {len(pruned.kept)} tokens were kept"
    away = np.abs(rows.astype(np.float32) - wanted.astype(np.float32)).max(initial=0.0, axis=(0, 1, 3))
    worst = int(np.argmax(away)) if away.size else 0
    if away.size and not away[worst] <= CLOSE * float(np.abs(wanted.astype(np.float32)).max()):
        return f"layer {layer} holds at row {worst} another key than that of token {int(pruned.kept[worst])}"
    return ""
