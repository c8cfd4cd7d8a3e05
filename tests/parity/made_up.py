"""An observation made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from iwp_export.parity.observation import Choice, Observation, sketch

RNG = np.random.default_rng(0)
S, N, K, T = 9, 5, 6, 4


def rows(count: int) -> Any:
    return sketch(RNG.standard_normal((count, 16)))


def stacked(*counts: int) -> list[Any]:
    return [rows(count) for count in counts]


def observation(hidden: bool = True) -> Observation:
    """Of a model with two layers; the second holds the tokens that are left."""
    alike = RNG.random((N, N)).astype(np.float32)
    lengths = (S + T - 1, K + T - 1)
    return Observation(
        token_ids=np.arange(S),
        visual=np.isin(np.arange(S), range(2, 2 + N)),
        inputs={"0.pixel_values": rows(12), "0.pack_index": np.arange(N), "1.pixel_values": rows(3)},
        features=stacked(3, 2),
        kept=np.array([0, 1, 3, 5, 7, 8]),
        tokens=np.array([4, 4, 3, 2]),
        forced=np.array([4, 4, 3, 2]),
        text="a red 4",
        logits=RNG.standard_normal((T, 20)).astype(np.float32),
        cache=stacked(lengths[0], lengths[0], lengths[1], lengths[1]),
        hidden=stacked(*[S + T - 1] * 2) if hidden else stacked(),
        choice=Choice(RNG.random(N).astype(np.float32), alike + alike.T),
    )
