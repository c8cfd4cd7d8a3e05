"""Tiny random checkpoints in folders, as a user's own would lie there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from iwp_export.models import ALIASES

ASSETS = Path(ALIASES["tiny-llava"])
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 48,
    "max_position_embeddings": 256,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 112,
    "patch_size": 14,
    "projection_dim": 32,
}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 32},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
}
"""Language models that differ in biases, head size apart from the hidden size, and tied embeddings."""


TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
CANVASES = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def write_llava_next(folder: Path, decoder: str = "mistral", shard_size: str = "5GB", **text: Any) -> Any:
    """Write a random LLaVA-NeXT whose tiles are 56 x 56 pixels, 4 x 4 tokens; returns it, in float32."""
    from transformers import (
        CLIPVisionConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessorPil,
    )

    torch.manual_seed(0)
    vision = CLIPVisionConfig(**{**TOWER, "image_size": 56})
    config = LlavaNextConfig(
        vision_config=vision,
        text_config={**TEXT, "max_position_embeddings": 1024, **DECODERS[decoder], **text},
        image_token_index=4,
        image_grid_pinpoints=CANVASES,
        vision_feature_layer=-2,
        tie_word_embeddings=decoder == "qwen2",
    )
    model = LlavaNextForConditionalGeneration(config).eval()
    _randomise(model)
    model.save_pretrained(folder, max_shard_size=shard_size)
    for name in TOKENIZER:
        shutil.copyfile(ASSETS / name, folder / name)
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=CANVASES
    )
    processor = {
        "processor_class": "LlavaNextProcessor",
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "image_token": "<image>",
        "image_processor": images.to_dict(),
    }
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=1))
    return model


def _randomise(model: Any) -> None:
    """Spread weights so that logits differ and no norm is trivial."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(3.0) if parameter.dim() == 2 else parameter.add_(torch.randn_like(parameter) * 0.1)
            if name.endswith("class_embedding"):
                parameter.normal_()


def write_llava(folder: Path, decoder: str = "llama", shard_size: str = "5GB", **text: Any) -> Any:
    """Write a random LLaVA with this language model; returns it, in float32."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER),
        text_config={**TEXT, **DECODERS[decoder], **text},
        image_token_index=4,
        image_seq_length=64,
        vision_feature_layer=-2,
        tie_word_embeddings=decoder == "qwen2",
    )
    model = LlavaForConditionalGeneration(config).eval()
    _randomise(model)
    model.save_pretrained(folder, max_shard_size=shard_size)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        shutil.copyfile(ASSETS / name, folder / name)
    return model
