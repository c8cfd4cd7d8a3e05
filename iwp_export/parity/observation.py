"""What a session makes of a prompt, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from iwp_export.backends.session import (
    Array,
    Cache,
    CallLimits,
    Features,
    Floats,
    Inside,
    Ints,
    Session,
    StepInputs,
    StepOutput,
)
from iwp_export.models.common.family import Picture
from iwp_export.parity.sketch import Rows, sketched
from iwp_export.pruning.reference import pair_likeness
from iwp_export.runtime.model import LoadedModel
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.processor import Prompt

Look = Literal["nothing", "choice", "layers"]
"""Whether to look inside of calls: at what visual tokens are chosen by, or also at the states between layers."""


@dataclass(frozen=True, eq=False)
class Choice:
    """What the pruning op chose n visual tokens from: importance float32 [n], and how alike they are [n, n]."""

    importance: Floats
    alike: Floats


@dataclass(frozen=True, eq=False)
class Observation:
    """One prompt at one keep ratio, with the T tokens of an answer; the last of them is not run.

    Attributes:
        token_ids: int64 [S], the prompt.
        visual: bool [S], true at its visual tokens.
        inputs: of each image, the vision graph's inputs by name: rows of numbers, or whole numbers.
        features: of each image, its visual tokens.
        kept: int64 [K], the tokens of the prompt that went on past the pruning layer.
        tokens: int64 [T], the likeliest token at each place, after `forced`, the ones before.
        forced: int64 [T], the answer along which it ran.
        logits: float32 [T, V].
        cache: of each layer, keys and values: of the prompt's tokens that are left, then of the answer's.
        hidden: of each layer, its input, with rows as above but that the pruning layer still has the whole prompt;
            empty where it was not looked at.
        choice: what was chosen from; None where it was not looked at, or nothing was to be chosen.
    """

    token_ids: Ints
    visual: npt.NDArray[np.bool_]
    inputs: tuple[Mapping[str, Rows | Ints], ...]
    features: tuple[Rows, ...]
    kept: Ints
    tokens: Ints
    forced: Ints
    logits: Floats
    cache: tuple[tuple[Rows, Rows], ...]
    hidden: tuple[Rows, ...] = ()
    choice: Choice | None = None


def observe(
    pipeline: Pipeline,
    prompt: Prompt,
    keep: float,
    max_new_tokens: int,
    forced: Sequence[int] | None = None,
    look: Look = "nothing",
) -> Observation:
    """Run a prompt as a user's request runs, and note what each stage made of it.

    Args:
        pipeline: on any backend.
        prompt: token ids and pictures.
        keep: fraction of the visual tokens that stays.
        max_new_tokens: of an answer that is not forced.
        forced: the answer to run along, whatever the model would say; None is its own.
        look: costs a second decoder where there is something to look at; see `Session.look`.

    Raises:
        RequestError: the prompt does not fit the model.
        BackendError: the backend failed, or cannot look.
    """
    watched = WatchedSession(pipeline.session, look)
    model = LoadedModel(pipeline.manifest, pipeline.processor, watched)
    best: list[int] = []

    def choose(logits: Floats) -> int:
        best.append(int(np.argmax(np.where(np.isnan(logits), -np.inf, logits))))
        return best[-1] if forced is None else int(forced[len(best) - 1])

    result = Pipeline(model).generate_ids(
        prompt.token_ids,
        prompt.pictures,
        max_new_tokens=max_new_tokens if forced is None else len(forced),
        keep=keep,
        choose=choose,
        stop_at_eos=False,  # every sample then has as many tokens to compare
        return_logits=True,
    )
    layers = range(pipeline.manifest.decoder.layers)
    return Observation(
        token_ids=prompt.token_ids,
        visual=prompt.token_ids == pipeline.manifest.vision.image_token_id,
        inputs=tuple(map(picture_inputs, prompt.pictures)),
        features=tuple(sketched(pipeline.session.read_features(each)) for each in watched.features),
        kept=watched.kept,
        tokens=np.array(best, np.int64),
        forced=np.array(result.token_ids, np.int64),
        logits=np.stack(result.logits or []),
        cache=tuple(tuple(map(heads_rows, pipeline.session.read_cache(watched.cache, i))) for i in layers),  # type: ignore[misc]
        hidden=watched.hidden(),
        choice=watched.choice(pipeline.manifest.pruning.selection()),
    )


def picture_inputs(picture: Picture) -> dict[str, Rows | Ints]:
    """The vision graph's inputs for one image, by name: numbers as rows, whole numbers as they are."""
    return {
        name: sketched(array) if np.issubdtype(array.dtype, np.floating) else array.astype(np.int64)
        for name, array in picture.inputs.items()
    }


def heads_rows(part: Floats) -> Rows:
    """Keys or values [Hkv, P, d] as a row for each token."""
    return sketched(part.transpose(1, 0, 2).reshape(part.shape[1], part.shape[0] * part.shape[2]))


class WatchedSession:
    """A session that remembers what a conversation of one prompt made of it.

    Attributes:
        features: of the prompt's images, as the decoder got them.
        kept: tokens of the prompt that went on past the pruning layer.
    """

    def __init__(self, session: Session, look: Look) -> None:
        self._session, self._look = session, look
        self._inside: list[Inside] = []
        self._visual: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self.features: tuple[Features, ...] = ()
        self.kept: Ints = np.zeros(0, np.int64)

    @property
    def provider(self) -> str:
        return self._session.provider

    @property
    def call_limits(self) -> CallLimits | None:
        return self._session.call_limits

    @property
    def no_look(self) -> str:
        return self._session.no_look

    def encode(self, inputs: Mapping[str, Array]) -> Features:
        return self._session.encode(inputs)

    def new_cache(self) -> Cache:
        self.cache = self._session.new_cache()
        return self.cache

    def step(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> StepOutput:
        prompt = not self.kept.size
        if self._look == "layers" or (self._look == "choice" and prompt):
            output, inside = self._session.look(inputs, features, cache)
            self._inside.append(inside)
        else:
            output = self._session.step(inputs, features, cache)
        if prompt:
            self.features, self.kept = tuple(features), output.kept_index
            self._visual = inputs.feature_index[0] >= 0
        return output

    def look(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> tuple[StepOutput, Inside]:
        return self._session.look(inputs, features, cache)

    def read_features(self, features: Features) -> Floats:
        return self._session.read_features(features)

    def read_cache(self, cache: Cache, layer: int) -> tuple[Floats, Floats]:
        return self._session.read_cache(cache, layer)

    def hidden(self) -> tuple[Rows, ...]:
        """Of each layer, its input at every token that is left there; empty if it was not looked at."""
        if self._look != "layers":
            return ()
        layers = range(len(self._inside[0].hidden))
        return tuple(sketched(np.concatenate([inside.hidden[layer] for inside in self._inside])) for layer in layers)

    def choice(self, selection: Mapping[str, Any]) -> Choice | None:
        """What the prompt's visual tokens were chosen from; None if it was not looked at or there are none."""
        if not self._inside or not self._visual.any():
            return None
        inside, visual = self._inside[0], self._visual
        alike = pair_likeness(inside.key[:, visual], inside.value[:, visual], **selection)
        return Choice(inside.importance[visual], alike)
