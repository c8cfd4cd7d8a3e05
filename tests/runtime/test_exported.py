"""A real export in the runtime, against transformers: the same tokens and logits when nothing is pruned."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iwp_export.export.exporter import export_bundle
from iwp_export.pruning.settings import PruningSettings
from iwp_export.runtime.generate import Context
from iwp_export.runtime.ort import OrtCache
from iwp_export.runtime.pipeline import Pipeline
from tests.runtime.toy import ASSETS, PROCESSOR_FILES

IMAGE, OTHER = np.random.default_rng(4).integers(0, 256, (2, 90, 120, 3), np.uint8)
TOLERANCE = 2e-5
"""Of logits in float32, whose largest is about 1 in this random model."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaVA of three layers that takes tiny-llava's processor."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=112, patch_size=14
    )
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=48,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=4, image_seq_length=64, vision_feature_layer=-1
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    for name in (*PROCESSOR_FILES, "generation_config.json"):
        shutil.copy(ASSETS / name, folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    path = tmp_path_factory.mktemp("bundle") / "random.bundle"
    export_bundle(str(checkpoint), path, PruningSettings(layer=1), dtype="float32")
    return Pipeline.open(path, threads=1)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(checkpoint).float().eval()
    model.generation_config.eos_token_id = None  # eight tokens, whatever they are
    return model


@pytest.mark.parametrize("images", [[], [IMAGE], [IMAGE, OTHER]])
def test_equals_transformers_when_nothing_is_pruned(pipeline: Pipeline, reference: Any, images: list[Any]) -> None:
    import torch

    processor = pipeline.processor
    prompt = processor.render([{"role": "user", "content": [*[{"type": "image"}] * len(images), _text("how many ?")]}])
    ids = processor.token_ids(prompt, len(images))
    pixels = np.concatenate([processor.image(image).pixel_values for image in images]) if images else None
    ours = pipeline.generate_ids(ids, pixels, max_new_tokens=8, keep=1, return_logits=True, stop_at_eos=False)
    inputs = {"input_ids": torch.tensor(ids)[None], "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if pixels is not None:
        inputs["pixel_values"] = torch.tensor(pixels)
    theirs = reference.generate(
        **inputs,
        max_new_tokens=8,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert ours.token_ids == theirs.sequences[0, len(ids) :].tolist()
    assert ours.logits is not None
    np.testing.assert_allclose(ours.logits, torch.stack(theirs.logits)[:, 0].numpy(), atol=TOLERANCE)


def test_a_turn_over_the_cache_equals_one_long_prompt(pipeline: Pipeline) -> None:
    model, processor = pipeline._model, pipeline.processor
    ids = processor.token_ids("user <image> how many ? assistant 3 <eos> user <image> what colour ? assistant", 2)
    pictures = [processor.image(image) for image in (IMAGE, OTHER)]
    pixels = np.concatenate([picture.pixel_values for picture in pictures])
    whole = pipeline.generate_ids(ids, pixels, max_new_tokens=1, keep=1, return_logits=True)
    context = Context(model.session.new_cache())
    for part, picture in zip((ids[:72], ids[72:]), pictures, strict=True):
        call = model.prepare(context, part, [picture], keep=1)
        output = context.run(model.session, call.inputs, [model.features(picture)])
    assert whole.logits is not None
    np.testing.assert_allclose(output.logits, whole.logits[0], atol=TOLERANCE)


@pytest.mark.parametrize(("keep", "kept"), [(0.3, 20), (0.01, 1), (1.0, 64)])
def test_pruned_layers_hold_what_was_kept(pipeline: Pipeline, keep: float, kept: int) -> None:
    chat = pipeline.chat(keep)
    result = chat.ask("what colour ?", IMAGE, max_new_tokens=1)
    cache = chat._context.cache
    assert isinstance(cache, OrtCache)
    assert cache.lengths == (70, 70 - 64 + kept, 70 - 64 + kept)
    assert result.visual_tokens_kept == len(result.kept[0]) == kept
    assert result.cache_bytes == sum(cache.lengths) * 2 * 2 * 8 * 4
    assert result.cache_bytes_unpruned == 3 * 70 * 2 * 2 * 8 * 4
    following = chat.ask("how many ?", OTHER, max_new_tokens=1)
    assert following.visual_tokens_kept == kept and following.reused_tokens == 70


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
