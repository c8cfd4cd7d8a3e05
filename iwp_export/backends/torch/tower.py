"""A second look at the vision tower: the attention and keys that its features do not show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from iwp_export.backends.torch.seen import TowerSeen
from iwp_export.errors import SettingsError

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
