"""tiny-llava in the runtime, against transformers: the same tokens and logits when nothing is pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iwp_export.backends.ort.session import OrtCache
from iwp_export.runtime.generate import Context
from iwp_export.runtime.pipeline import Pipeline
from tests.runtime.toy import ASSETS

IMAGE, OTHER = np.random.default_rng(4).integers(0, 256, (2, 90, 120, 3), np.uint8)
TOLERANCE = 1e-4
"""Of logits in float32, whose largest are some tens in a trained model."""


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return Pipeline.open(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def reference() -> Any:
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(ASSETS).float().eval()
    model.generation_config.eos_token_id = None  # eight tokens, whatever they are
    return model


@pytest.mark.parametrize("images", [[], [IMAGE], [IMAGE, OTHER]])
def test_equals_transformers_when_nothing_is_pruned(pipeline: Pipeline, reference: Any, images: list[Any]) -> None:
    import torch

    processor = pipeline.processor
    prompt = processor.render([{"role": "user", "content": [*[{"type": "image"}] * len(images), _text("how many ?")]}])
    pictures = [processor.image(image) for image in images]
    ids = processor.token_ids(prompt, pictures)
    ours = pipeline.generate_ids(ids, pictures, max_new_tokens=8, keep=1, return_logits=True, stop_at_eos=False)
    inputs = {"input_ids": torch.tensor(ids)[None], "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if pictures:
        inputs["pixel_values"] = torch.tensor(np.concatenate([picture.inputs["pixel_values"] for picture in pictures]))
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
    processor = pipeline.processor
    pictures = [processor.image(image) for image in (IMAGE, OTHER)]
    text = "user <image> how many ? assistant 3 <eos> user <image> what colour ? assistant"
    ids = processor.token_ids(text, pictures)
    whole = pipeline.generate_ids(ids, pictures, max_new_tokens=1, keep=1, return_logits=True)
    context = Context(pipeline.session.new_cache())
    for part, picture in zip((ids[:72], ids[72:]), pictures, strict=True):
        call = pipeline.prepare(context, part, [picture], keep=1)
        output = call.run(pipeline.session, [pipeline.features(picture)])
    assert whole.logits is not None
    np.testing.assert_allclose(output.logits, whole.logits[0], atol=TOLERANCE)


@pytest.mark.parametrize(("keep", "kept"), [(None, 20), (0.01, 1), (1.0, 64)])
def test_pruned_layers_hold_what_was_kept(pipeline: Pipeline, keep: float | None, kept: int) -> None:
    chat = pipeline.chat(keep)
    result = chat.ask("what colour ?", IMAGE, max_new_tokens=1)
    cache, decoder = chat._context.cache, pipeline.manifest.decoder
    assert isinstance(cache, OrtCache)
    full = pipeline.manifest.pruning.layer
    lengths = [70] * full + [70 - 64 + kept] * (decoder.layers - full)
    assert list(cache.lengths) == lengths
    assert result.visual_tokens_kept == len(result.kept[0]) == kept
    assert result.cache_bytes == decoder.cache_bytes(lengths)
    assert result.cache_bytes_unpruned == decoder.cache_bytes([70] * decoder.layers)
    following = chat.ask("how many ?", OTHER, max_new_tokens=1)
    assert following.visual_tokens_kept == kept
    assert following.reused_tokens == (0 if following.note else 70)


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
