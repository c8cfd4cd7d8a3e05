"""The interface behind which every backend stands: encode an image, step through tokens, own the caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

CARRIERS = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
"""numpy types of the same bits as an element type of graphs: numpy has no bfloat16."""

STEP_TENSORS = ("input_ids", "feature_index", "query_index", "position_ids")
"""The arrays of `StepInputs`, by the names of the decoder's inputs."""


@dataclass(frozen=True)
class StepInputs:
    """One call of the decoder: a prompt, a further turn, or one generated token (S = 1).

    Attributes:
        input_ids: int64 [1, S].
        feature_index: int64 [1, S], row in the call's image features at a visual token, -1 at text.
        query_index: int64 [Q], the call's tokens whose queries score the visual ones; Q is 1 at least.
        position_ids: int64 [1, S] or, with M-RoPE, [3, 1, S]: positions in the unpruned sequence.
        num_kept: tokens of this call, text and visual, that go on past the pruning layer.
    """

    input_ids: Ints
    feature_index: Ints
    query_index: Ints
    position_ids: Ints
    num_kept: int


@dataclass(frozen=True)
class StepOutput:
    """What comes back to the host.

    Attributes:
        logits: float32 [V] of the last token.
        kept_index: int64 [K], ascending indices into the call's S tokens.
    """

    logits: Floats
    kept_index: Ints


@dataclass(frozen=True)
class Inside:
    """What a call computed on its way, for comparisons.

    Attributes:
        hidden: the input of layer 0, 1, ..., float32 [n, D] of the call's n tokens that are left there.
        importance: float32 [S], as the pruning op got it; values at text mean nothing.
        key, value: float32 [Hkv, S, d], as the pruning op got them.
    """

    hidden: tuple[Floats, ...]
    importance: Floats
    key: Floats
    value: Floats


@dataclass(frozen=True)
class CallLimits:
    """What one call of `Session.step` may hold.

    Attributes:
        tokens: text and visual tokens together.
        visual_tokens: those of all its images.
    """

    tokens: int
    visual_tokens: int

    def allow(self, visual: npt.NDArray[np.bool_]) -> bool:
        """Whether a call fits; `visual` is true at its visual tokens."""
        return visual.size <= self.tokens and int(visual.sum()) <= self.visual_tokens


class Features(Protocol):
    """Features of one image, where the backend keeps them (on the device); opaque to the host."""

    @property
    def count(self) -> int:
        """Visual tokens."""


class Cache(Protocol):
    """The key/value cache of one conversation, where the backend keeps it; opaque to the host."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens held by each layer: all of them below the pruning layer, the kept ones from it on."""

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values of `lengths` tokens, not of what a backend set aside."""


class Session(Protocol):
    """A loaded bundle on one backend.

    A backend may switch optimisation profiles on S == 1 and replay a captured graph there: a step with S == 1 has no
    features, and its only shapes that change are the cache's. Calls come from one thread at a time. They raise
    BackendError where the backend fails.
    """

    @property
    def provider(self) -> str:
        """What executes the graphs, as this backend names it."""

    @property
    def call_limits(self) -> CallLimits | None:
        """What one call may hold; None where only the model limits it."""

    def encode(self, inputs: Mapping[str, Array]) -> Features:
        """Run the vision graph on one image; the features are there when this returns.

        Args:
            inputs: the graph's inputs by name (`Picture.inputs`).
        """

    def new_cache(self) -> Cache:
        """An empty cache."""

    def step(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> StepOutput:
        """Run the decoder on new tokens and append them to the cache.

        Args:
            inputs: the call.
            features: the call's images in the order of their rows in `feature_index`; empty without images.
            cache: from `new_cache`; advanced in place, or left as it was if the call fails.
        """

    def read_features(self, features: Features) -> Floats:
        """Copy an image's features to the host: float32 [n, D]."""

    def read_cache(self, cache: Cache, layer: int) -> tuple[Floats, Floats]:
        """Copy a layer's keys (rotated) and values to the host, float32 [Hkv, P, d] each.

        P is read from the backend's own buffers: what a layer holds after pruning shows here.
        """

    @property
    def no_look(self) -> str:
        """Why `look` cannot be used; empty if it can."""

    def look(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> tuple[StepOutput, Inside]:
        """`step`, with what the call computed on its way. Slower, and in memory beside the decoder itself.

        Raises:
            BackendError: also where it cannot be done (`no_look`).
        """


def widened(array: Array) -> Floats:
    """Numbers of a type of `CARRIERS` as float32."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)
