"""A checkpoint in torch whose visual tokens another method chooses, and what such a method may look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from iwp_export.backends.session import Cache, Features, StepInputs, StepOutput
from iwp_export.backends.torch.decoder import Projected, Stream
from iwp_export.backends.torch.session import TorchCache, TorchFeatures, TorchSession
from iwp_export.errors import SettingsError
from iwp_export.models.common.family import Array
from iwp_export.pruning.settings import PruningSettings
from iwp_export.pruning.torch_select import kept_index


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

    def layers(self) -> tuple[LayerSeen, LayerSeen]:
        """The layer before the pruning layer, and that layer.

        Raises:
            SettingsError: tokens are dropped at layer 0.
        """
        if self.below is None or self.at is None:
            raise SettingsError("the method needs the layer before the pruning layer: choose layer 1 or more")
        return self.below, self.at


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


@dataclass(frozen=True)
class Method:
    """A way to choose. Without `choose` and `condense` it is IWP with its settings.

    Attributes:
        settings: where it drops tokens; for variants of IWP its scores too.
        choose: which visual tokens go on past the pruning layer: their indices, in any order, from what can be seen
            there and how many may go on.
        condense: for methods that work before layer 0: the m features that stand for a call's one image there.
        needs: what it needs of the model and the layer.
    """

    settings: PruningSettings
    choose: Callable[[Seen, int], Tensor] | None = None
    condense: Callable[[Seen, int], Condensed] | None = None
    needs: tuple[Literal["layer below", "class token"], ...] = ()

    def kept(
        self, seen: Seen, importance: Tensor, key: Tensor, value: Tensor, visual: Tensor, num_kept: Tensor
    ) -> Tensor:
        """The pruning op of a call: int64 [1, K], ascending."""
        keep = ~visual[0]
        budget, places = int(num_kept[0]) - int(keep.sum()), torch.nonzero(visual[0])[:, 0]
        if budget == len(places):
            return torch.arange(visual.shape[1])[None]
        if self.choose is None:
            return kept_index(importance, key, value, visual, int(num_kept[0]), self.settings)
        keep[places[self.choose(seen, budget)]] = True
        return torch.nonzero(keep)[:, 0][None]

    def refusal(self, model: Any) -> str | None:
        """Why it cannot be run on a transformers model; None where it can."""
        if "layer below" in self.needs and self.settings.layer == 0:
            return "it needs the layer before the pruning layer: choose layer 1 or more"
        return no_class_token(model) if "class token" in self.needs else None


@dataclass(frozen=True)
class SeenFeatures(TorchFeatures):
    """Features of one image, and the picture's arrays that they were made from."""

    inputs: Mapping[str, Array]


@dataclass
class ShiftedCache(TorchCache):
    """`shift` is how many tokens fewer the language model has read than the host counts: images were condensed."""

    shift: int = 0


class RivalSession(TorchSession):
    """A checkpoint in torch, pruned by a method. One that condenses makes the language model read a shorter prompt."""

    def __init__(self, session: TorchSession, method: Method) -> None:
        super().__init__(session.model, session.family, method.settings, self._select)
        self._method, self._layers = method, dict[int, LayerSeen]()
        self.decoder.watch = self._watch

    def encode(self, inputs: Mapping[str, Array]) -> Features:
        made = super().encode(inputs)
        assert isinstance(made, TorchFeatures)
        return SeenFeatures(made.values, inputs)

    def new_cache(self) -> Cache:
        return ShiftedCache()

    def step(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> StepOutput:
        """See `Session.step`.

        Raises:
            SettingsError: the method needs what the model or the call does not have.
        """
        assert isinstance(cache, ShiftedCache)
        images = [image for image in features if isinstance(image, SeenFeatures)]
        self._seen, self._past = self._see(inputs, images), cache.values
        inputs = replace(inputs, position_ids=inputs.position_ids - cache.shift)
        tokens, condense = inputs.input_ids.shape[1], self._method.condense
        if condense is None or inputs.num_kept == tokens:
            return super().step(inputs, images, cache)
        if len(images) != 1:
            raise SettingsError(f"methods that work before layer 0 take one image a call, got {len(images)}")
        with torch.no_grad():
            condensed = condense(self._seen, int(self._seen.visual.sum()) - (tokens - inputs.num_kept))
        inputs, left = _shortened(inputs, condensed)
        output = super().step(inputs, [TorchFeatures(condensed.features.to(images[0].values.dtype))], cache)
        cache.shift += tokens - inputs.input_ids.shape[1]
        return replace(output, kept_index=left)

    def _see(self, inputs: StepInputs, images: Sequence[SeenFeatures]) -> Seen:
        """What can be seen of a call before the language model runs."""
        visual = inputs.feature_index[0] >= 0
        text = np.flatnonzero(~visual)
        after = text[text > np.flatnonzero(visual)[-1]] if visual.any() else text
        words = torch.from_numpy(inputs.input_ids[0, after if len(after) else text]).to(self.device)
        with torch.no_grad():
            embedded = self.decoder.language_model.embed_tokens(words)

        def towers() -> tuple[TowerSeen, ...]:
            pixels = [image.inputs.get("pixel_values") for image in images]
            found = [torch.from_numpy(each).to(self.device) for each in pixels if each is not None]
            return tuple(look_at_tower(self.model, each) for each in found)

        joined = torch.cat([image.values for image in images]) if images else embedded[:0]
        return Seen(joined, torch.from_numpy(visual).to(self.device), embedded, towers)

    def _watch(self, index: int, stream: Stream, projected: Projected) -> None:
        """Keep what the next call of the pruning op may look at."""
        if index in (self.decoder.settings.layer - 1, self.decoder.settings.layer):
            of = projected
            past = self._past[2 * index] if self._past else of.rotated_key[:, :, :0]
            self._layers[index] = LayerSeen(stream.hidden, of.query, of.key, of.rotated_query, of.rotated_key, past)

    def _select(self, *inputs: Tensor) -> Tensor:
        layer = self.decoder.settings.layer
        seen = replace(self._seen, below=self._layers.get(layer - 1), at=self._layers[layer])
        return self._method.kept(seen, *inputs)


def _shortened(inputs: StepInputs, condensed: Condensed) -> tuple[StepInputs, Any]:
    """A call whose image is replaced by other features, and that drops nothing afterwards.

    The new tokens stand where the image's first one stood; positions go on from the call's first without gaps, as in
    a prompt with a smaller image.

    Returns:
        The call, and the host's indices of its tokens that are left, int64 [K], ascending.

    Raises:
        SettingsError: positions of more than one dimension, which a set of tokens does not have.
    """
    if inputs.position_ids.ndim != 2:
        raise SettingsError("methods that work before layer 0 renumber positions, which this model has in 3 dimensions")
    visual = inputs.feature_index[0] >= 0
    tokens, text, count = np.flatnonzero(visual), np.flatnonzero(~visual), len(condensed.features)
    first = int(tokens[0])
    source = np.concatenate([text[text < first], np.full(count, first), text[text > first]])
    feature_index = np.full(len(source), -1)
    feature_index[first : first + count] = np.arange(count)
    shorter = StepInputs(
        input_ids=inputs.input_ids[:, source],
        feature_index=feature_index[None],
        query_index=np.array([len(source) - 1]),
        position_ids=inputs.position_ids[:, : len(source)],
        num_kept=len(source),
    )
    return shorter, np.sort(np.concatenate([text, tokens[condensed.rows.cpu().numpy()]]))


WITH_CLASS_TOKEN = "clip_vision_model"
"""The vision tower (its `model_type`) of the supported ones that has a class token."""
ONE_SQUARE = "llava"
"""The family whose visual tokens are the patches of one square image, in the tower's order."""


def no_class_token(model: Any) -> str | None:
    """Why the class token's attention cannot be had from a transformers model; None where it can."""
    config = model.config
    if config.model_type != ONE_SQUARE:
        return f"it is defined on the patches of one square image, {config.model_type} has other visual tokens"
    if config.vision_config.model_type != WITH_CLASS_TOKEN:
        return f"it needs a vision tower with a class token, {config.vision_config.model_type} has none"
    if _last_layer(config) == 0:
        return "it needs a layer of the vision tower, the features are the embeddings before the first"
    return None


def look_at_tower(model: Any, pixel_values: Tensor) -> TowerSeen:
    """Run the tower on one image and keep what the layer that made its features computed.

    Args:
        model: the transformers model.
        pixel_values: [1, 3, H, W].

    Raises:
        SettingsError: `no_class_token`.
    """
    if reason := no_class_token(model):
        raise SettingsError(reason)
    body, layers = model.model, model.config.vision_feature_layer
    attention = body.vision_tower.encoder.layers[_last_layer(model.config) - 1].self_attn
    taken: dict[str, Tensor] = {}

    def take(name: str) -> Any:
        return lambda module, inputs, output: taken.__setitem__(name, output)

    names = ("q_proj", "k_proj")
    hooks = [getattr(attention, name).register_forward_hook(take(name)) for name in names]
    try:
        with torch.no_grad():
            pixels = pixel_values.to(model.dtype)
            states = body.vision_tower(pixels, output_hidden_states=True, return_dict=True).hidden_states
    finally:
        for hook in hooks:
            hook.remove()
    hidden = torch.cat([states[i] for i in ([layers] if isinstance(layers, int) else layers)], dim=-1)
    query, key = (taken[name][0].unflatten(-1, (attention.num_heads, -1)).transpose(0, 1) for name in names)
    return TowerSeen(hidden[0], query, key, body.multi_modal_projector)


def _last_layer(config: Any) -> int:
    """The deepest of the hidden states that are features: 0 is the embeddings, i the output of layer i - 1."""
    layers = config.vision_feature_layer
    states = config.vision_config.num_hidden_layers + 1
    return max(layer % states for layer in ([layers] if isinstance(layers, int) else layers))
