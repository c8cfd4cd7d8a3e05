"""Sessions that are not quite the ones that they wrap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from iwp_export.backends.session import Array, Cache, Features, Floats, Inside, Session, StepInputs, StepOutput
from iwp_export.runtime.pipeline import Pipeline


class Tampered:
    """A session with changes on its way in and out.

    Args:
        session: what runs.
        pixels: changes the vision graph's inputs, by name.
        inputs: changes a call.
        logits: changes logits [V].
        kept: changes what comes back as kept_index.
        cache: changes what is read of a layer's keys or values [Hkv, P, d].
        order: puts the features of a call's images in another order.
    """

    def __init__(
        self,
        session: Session,
        pixels: Callable[[Array], Array] = lambda array: array,
        inputs: Callable[[StepInputs], StepInputs] = lambda inputs: inputs,
        logits: Callable[[Floats], Floats] = lambda logits: logits,
        kept: Callable[[Any], Any] = lambda kept: kept,
        cache: Callable[[Floats, int], Floats] = lambda part, layer: part,
        order: Callable[[Sequence[Features]], Sequence[Features]] = lambda features: features,
    ) -> None:
        self._session = session
        self._pixels, self._inputs, self._logits, self._kept = pixels, inputs, logits, kept
        self._cache, self._order = cache, order
        self.provider, self.call_limits, self.no_look = "tampered", session.call_limits, session.no_look

    def encode(self, inputs: Mapping[str, Array]) -> Features:
        changed = {name: self._pixels(array) if array.dtype == np.float32 else array for name, array in inputs.items()}
        return self._session.encode(changed)

    def new_cache(self) -> Cache:
        return self._session.new_cache()

    def step(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> StepOutput:
        return self._changed(self._session.step(self._inputs(inputs), self._order(features), cache))

    def look(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> tuple[StepOutput, Inside]:
        output, inside = self._session.look(self._inputs(inputs), self._order(features), cache)
        return self._changed(output), inside

    def read_features(self, features: Features) -> Floats:
        return self._session.read_features(features)

    def read_cache(self, cache: Cache, layer: int) -> tuple[Floats, Floats]:
        key, value = self._session.read_cache(cache, layer)
        return self._cache(key, layer), self._cache(value, layer)

    def _changed(self, output: StepOutput) -> StepOutput:
        return replace(output, logits=self._logits(output.logits), kept_index=self._kept(output.kept_index))


def tampered(pipeline: Pipeline, **changes: Any) -> Pipeline:
    """A pipeline whose session is tampered with; see `Tampered`."""
    session = Tampered(pipeline.session, **changes)
    return Pipeline(pipeline.manifest, pipeline.processor, session)
