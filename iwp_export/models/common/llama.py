"""The parts of a Llama-like decoder, in torch: what a family does unless its file says otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def embed(language_model: Any, input_ids: Tensor, image_features: Tensor, feature_index: Tensor) -> Tensor:
    """Word embeddings [1, S, D] with the image features [N, D] in the places of the visual tokens."""
    visual = feature_index >= 0
    features = image_features[feature_index.clamp(min=0)]
    words = language_model.embed_tokens(input_ids.masked_fill(visual, 0))  # a visual token's id may lie beyond them
    return torch.where(visual[..., None], features, words)


def rotary(language_model: Any, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [1, S, d / 2] of the positions: transformers repeats each half, the ONNX operator takes one."""
    cos, sin = language_model.rotary_emb(hidden, position_ids)
    half = cos.shape[-1] // 2
    return cos[..., :half], sin[..., :half]


def project(attention: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [1, H, S, d], keys and values [1, Hkv, S, d] before RoPE, of the normalised input [1, S, D]."""
    shape = (*hidden.shape[:-1], -1, attention.head_dim)
    query, key, value = (
        projection(hidden).view(shape).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return query, key, value


def mask(new: int, past: int, like: Tensor) -> Tensor:
    """bool [1, 1, new, past + new]: a token sees the whole cache and this call's tokens up to itself."""
    position = torch.arange(past, past + new, device=like.device)
    return (torch.arange(past + new, device=like.device) <= position[:, None])[None, None]


def attend(attention: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Masked attention of query [1, H, S, d] over key and value [1, Hkv, P + S, d]: [1, S, D], projected."""
    grouped = query.shape[1] != key.shape[1]
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=attention.scaling, enable_gqa=grouped
    )
    return attention.o_proj(out.transpose(1, 2).reshape(1, query.shape[2], -1))
