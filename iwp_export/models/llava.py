"""LLaVA-1.5: CLIP tower, two-layer projector, Llama (or another plain decoder) as language model."""

from __future__ import annotations

from typing import Any

from iwp_export.bundle.manifest import VisionInfo
from iwp_export.errors import CheckpointError

RENAMES = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.(model\.)?", "model.language_model."),
    (r"^(model\.)?vision_tower\.(vision_model\.)?", "model.vision_tower."),
    (r"^multi_modal_projector\.", "model.multi_modal_projector."),
)


def vision_info(config: Any) -> VisionInfo:
    """One square image is one tile of side x side tokens; the tower's class token is dropped.

    Raises:
        CheckpointError: the tower is not CLIP's, or the checkpoint keeps the class token.
    """
    vision = config.vision_config
    if vision.model_type != "clip_vision_model":
        raise CheckpointError(f"vision tower {vision.model_type!r} is not supported in llava; supported: CLIP")
    if config.vision_feature_select_strategy != "default":
        raise CheckpointError(
            f"vision_feature_select_strategy {config.vision_feature_select_strategy!r} is not supported; use 'default'"
        )
    side = vision.image_size // vision.patch_size
    return VisionInfo(
        image_token_id=config.image_token_id,
        image_size=(vision.image_size, vision.image_size),
        grid=(side, side),
        feature_size=config.text_config.hidden_size,
    )


def image_features(model: Any, pixel_values: Any) -> Any:
    """Hidden states of the chosen tower layers, joined, without the class token, projected: [T, n, D]."""
    import torch

    llava, config = model.model, model.config
    hidden = llava.vision_tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
    layers = config.vision_feature_layer
    chosen = torch.cat([hidden[i] for i in ([layers] if isinstance(layers, int) else layers)], dim=-1)
    return llava.multi_modal_projector(chosen[:, 1:])


def language_model(model: Any) -> Any:
    return model.model.language_model
