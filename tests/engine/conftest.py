"""Bundles for the engine's tests, exported once for all worker processes, and TensorRT-RTX where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from iwp_export.engine.flavour import Flavour, is_installed, load_flavour
from tests.conftest import Once, export


@pytest.fixture(scope="session")
def rtx() -> Flavour:
    """TensorRT-RTX, which builds engines on a CPU."""
    if not is_installed("rtx"):
        pytest.skip("TensorRT-RTX is not installed: pip install 'iwp-export[rtx]' runs these tests, with no GPU")
    return load_flavour("rtx")


@pytest.fixture(scope="session")
def llava_heads_bundle(once: Once) -> Path:
    """LLaVA-1.5's attention (32 heads of 128, float16) with random weights, two layers and little else."""
    return once("llava-heads.bundle", lambda path: _export_random(path, heads=32, kv_heads=32))


@pytest.fixture(scope="session")
def grouped_heads_bundle(once: Once) -> Path:
    """Grouped-query attention, 8 heads of 128 over 2, float16, random weights, two layers and little else."""
    return once("grouped-heads.bundle", lambda path: _export_random(path, heads=8, kv_heads=2))


def _export_random(path: Path, heads: int, kv_heads: int) -> None:
    from calibration.random_checkpoint import write_checkpoint

    checkpoint = path.with_suffix(".checkpoint")
    write_checkpoint(checkpoint, _random_config(heads, kv_heads))
    export(checkpoint, path, "float16", layer=1, keep=0.353)


def _random_config(heads: int, kv_heads: int) -> object:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=112,
        patch_size=14,
        projection_dim=32,
    )
    text = LlamaConfig(
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=128,
        vocab_size=64,
        max_position_embeddings=4096,
    )
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=4, architectures=["LlavaForConditionalGeneration"]
    )
