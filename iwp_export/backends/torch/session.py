"""A call of the torch decoder: from the host's inputs, whole or with its image condensed before layer 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from iwp_export.backends.session import Cache, Features, Floats, Inside, StepInputs, StepOutput
from iwp_export.backends.torch.decoder import (
    Condense,
    Condensed,
    LayerSeen,
    PrunedDecoder,
    Seen,
    SelectFor,
    TowerSeen,
    select_in_torch,
)
from iwp_export.errors import SettingsError
from iwp_export.models.common.family import Array, Family
from iwp_export.pruning.settings import PruningSettings


@dataclass(frozen=True)
class DecoderCall:
    """The inputs of `PrunedDecoder.forward` but for the cache; see there."""

    input_ids: Tensor
    image_features: Tensor
    feature_index: Tensor
    query_index: Tensor
    position_ids: Tensor
    num_kept: int

    @property
    def tokens(self) -> int:
        return self.input_ids.shape[1]

    @property
    def visual(self) -> Tensor:
        """bool [S], true at visual tokens."""
        return self.feature_index[0] >= 0

    def inputs(self) -> tuple[Tensor, ...]:
        """In the order of `PrunedDecoder.forward`."""
        kept = torch.tensor([self.num_kept])
        index = self.feature_index, self.query_index, self.position_ids
        return self.input_ids, self.image_features, *index, kept


def whole_call(inputs: StepInputs, features: Sequence[Tensor], like: Tensor, shift: int) -> DecoderCall:
    """The host's call as it is.

    Args:
        inputs: the call.
        features: [n, D] of each of its images.
        like: [1, D], the features of a call without images.
        shift: how many tokens fewer the language model has read than the host counts.
    """
    arrays = (inputs.input_ids, inputs.feature_index, inputs.query_index, inputs.position_ids)
    ids, feature_index, query_index, position_ids = (torch.from_numpy(array).to(like.device) for array in arrays)
    joined = torch.cat(list(features)) if features else like
    return DecoderCall(ids, joined, feature_index, query_index, position_ids - shift, inputs.num_kept)


def condensed_call(call: DecoderCall, condensed: Condensed) -> tuple[DecoderCall, Tensor]:
    """A call whose image is replaced by other features, and that drops nothing afterwards.

    The new tokens stand where the image's first one stood; positions go on from the call's first without gaps, as in
    a prompt with a smaller image.

    Returns:
        The call, and the host's indices of its tokens that are left, int64 [K], ascending.

    Raises:
        SettingsError: positions of more than one dimension, which a set of tokens does not have.
    """
    if call.position_ids.ndim != 2:
        raise SettingsError("methods that work before layer 0 renumber positions, which this model has in 3 dimensions")
    visual = call.visual
    tokens, count = torch.nonzero(visual)[:, 0], len(condensed.features)
    first = int(tokens[0])
    text = torch.nonzero(~visual)[:, 0]
    source = torch.cat([text[text < first], tokens[:1].expand(count), text[text > first]])
    feature_index = torch.full_like(source, -1)
    feature_index[first : first + count] = torch.arange(count, device=source.device)
    shorter = DecoderCall(
        input_ids=call.input_ids[:, source],
        image_features=condensed.features.to(call.image_features.dtype),
        feature_index=feature_index[None],
        query_index=torch.tensor([len(source) - 1], device=source.device),
        position_ids=call.position_ids[:, : len(source)],
        num_kept=len(source),
    )
    return shorter, torch.cat([text, tokens[condensed.rows]]).sort().values


WITH_CLASS_TOKEN = "clip_vision_model"
"""The vision tower (its `model_type`) of the supported ones that has a class token."""
ONE_SQUARE = "llava"
"""The family whose visual tokens are the patches of one square image, in the tower's order."""


def refusal(model: Any) -> str | None:
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
        SettingsError: `refusal`.
    """
    if reason := refusal(model):
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


@dataclass(frozen=True)
class TorchFeatures:
    """Features of one image, [n, D], and the picture's arrays that they were made from."""

    values: Tensor
    inputs: Mapping[str, Array] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


@dataclass
class TorchCache:
    """Key and value [1, Hkv, P_i, d] of layer 0, 1, ...

    `shift` is how many tokens fewer the language model has read than the host counts, where images were condensed.
    """

    values: list[Tensor] = field(default_factory=list)
    shift: int = 0

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(key.shape[2] for key in self.values[::2])

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.values)


@dataclass
class _Noted:
    """What `TorchSession.look` collects: see `Inside`."""

    hidden: list[Floats] = field(default_factory=list)
    choice: list[Floats] = field(default_factory=list)


class TorchSession:
    """A checkpoint's transformers modules run by torch, pruned by the torch selection or by a rival's.

    Args:
        model: the transformers model.
        family: its family.
        settings: where and how to prune.
        select_for: the pruning op of each call; IWP's with `settings` if left out.
        condense: for a rival that works before layer 0: the features that stand for a call's image. The language
            model then reads a shorter prompt and drops nothing itself.
    """

    provider = "torch"
    call_limits = None
    no_look = ""

    def __init__(
        self,
        model: Any,
        family: Family,
        settings: PruningSettings,
        select_for: SelectFor | None = None,
        condense: Condense | None = None,
    ) -> None:
        self.model, self.family, self._condense = model, family, condense
        self._select_for = select_for or (lambda seen: select_in_torch(settings))
        self.decoder = PrunedDecoder(model, family, settings, _unset).eval()
        self._encoder = family.vision_graph(model).module.eval()
        self._noted: _Noted | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def choosing(
        self, settings: PruningSettings, select_for: SelectFor | None = None, condense: Condense | None = None
    ) -> TorchSession:
        """This session with another way to choose tokens; the model is shared."""
        return TorchSession(self.model, self.family, settings, select_for, condense)

    def encode(self, inputs: Mapping[str, Array]) -> Features:
        tensors = {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}
        with torch.no_grad():
            values = self._encoder(**tensors)
        if values.is_cuda:
            torch.cuda.synchronize()
        return TorchFeatures(values, inputs)

    def new_cache(self) -> Cache:
        return TorchCache()

    def step(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> StepOutput:
        """See `Session.step`.

        Raises:
            SettingsError: the way to choose needs what the model or the call does not have.
        """
        assert isinstance(cache, TorchCache)
        images = [image for image in features if isinstance(image, TorchFeatures)]
        none = torch.zeros(1, self.decoder.language_model.config.hidden_size, dtype=self.model.dtype).to(self.device)
        call = whole_call(inputs, [image.values for image in images], none, cache.shift)
        with torch.no_grad():
            before, left = self._see(call, images), None
            if self._condense is not None and call.num_kept < call.tokens:
                if len(images) != 1:
                    raise SettingsError(f"methods that work before layer 0 take one image a call, got {len(images)}")
                count = int(call.visual.sum()) - (call.tokens - call.num_kept)
                call, left = condensed_call(call, self._condense(before, count))
            self._watch(before)
            logits, present, kept = self.decoder(*call.inputs(), cache.values or self._empty_cache())
        cache.values = present
        cache.shift += inputs.input_ids.shape[1] - call.tokens
        return StepOutput(logits[0, 0].cpu().numpy(), (kept[0] if left is None else left).cpu().numpy())

    def read_features(self, features: Features) -> Floats:
        assert isinstance(features, TorchFeatures)
        return _on_host(features.values)

    def read_cache(self, cache: Cache, layer: int) -> tuple[Floats, Floats]:
        assert isinstance(cache, TorchCache)
        key, value = (_on_host(held[0]) for held in cache.values[2 * layer : 2 * layer + 2])
        return key, value

    def look(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> tuple[StepOutput, Inside]:
        self._noted = noted = _Noted()
        try:
            output = self.step(inputs, features, cache)
        finally:
            self._noted = None
        return output, Inside(tuple(noted.hidden), *noted.choice)

    def _see(self, call: DecoderCall, images: Sequence[TorchFeatures]) -> Seen:
        """What can be seen of a call before the language model runs."""
        visual = call.visual
        text = torch.nonzero(~visual)[:, 0]
        after = text[text > torch.nonzero(visual).max()] if visual.any() else text
        words = self.decoder.language_model.embed_tokens(call.input_ids[0, after if len(after) else text])
        pixels = [image.inputs.get("pixel_values") for image in images]

        def towers() -> tuple[TowerSeen, ...]:
            return tuple(
                look_at_tower(self.model, torch.from_numpy(each).to(self.device)) for each in pixels if each is not None
            )

        return Seen(call.image_features, visual, words, towers)

    def _watch(self, before: Seen) -> None:
        """Let the next call's pruning op see the layers that it may look at."""
        layer = self.decoder.settings.layer
        layers: dict[int, LayerSeen] = {}

        noted = self._noted

        def watch(index: int, computed: LayerSeen) -> None:
            if index in (layer - 1, layer):
                layers[index] = computed
            if noted is not None:
                noted.hidden.append(_on_host(computed.hidden[0]))

        def select(*inputs: Tensor) -> Tensor:
            if noted is not None:
                noted.choice = [_on_host(each[0]) for each in inputs[:3]]
            return self._select_for(replace(before, below=layers.get(layer - 1), at=layers[layer]))(*inputs)

        self.decoder.watch, self.decoder.select = watch, select

    def _empty_cache(self) -> list[Tensor]:
        layers = self.decoder.language_model.layers
        attention = layers[0].self_attn
        heads = attention.k_proj.out_features // attention.head_dim
        empty = torch.zeros(1, heads, 0, attention.head_dim, dtype=self.model.dtype, device=self.device)
        return [empty] * (2 * len(layers))


def _on_host(tensor: Tensor) -> Floats:
    found: Floats = tensor.detach().float().cpu().numpy()
    return found


def _unset(*inputs: Tensor) -> Tensor:
    raise AssertionError("the selection is set for each call")
