"""Tiny random checkpoints in folders, as a user's own would lie there."""

from __future__ import annotations

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
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 32},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
}
"""Language models that differ in biases, head size apart from the hidden size, and tied embeddings."""


def write_llava(folder: Path, decoder: str = "llama", shard_size: str = "5GB", **text: Any) -> Any:
    """Write a random LLaVA with this language model; returns it, in float32."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=112,
        patch_size=14,
        projection_dim=32,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config={**TEXT, **DECODERS[decoder], **text},
        image_token_index=4,
        image_seq_length=64,
        vision_feature_layer=-2,
        tie_word_embeddings=decoder == "qwen2",
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(3.0) if parameter.dim() == 2 else parameter.add_(torch.randn_like(parameter) * 0.1)
            if name.endswith("class_embedding"):
                parameter.normal_()
    model.save_pretrained(folder, max_shard_size=shard_size)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        shutil.copyfile(ASSETS / name, folder / name)
    return model
