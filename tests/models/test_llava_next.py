"""LLaVA-NeXT, from images of many sizes to tokens: what transformers makes of the same model and images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import iwp_export
from iwp_export.backends.torch.session import TorchSession
from iwp_export.errors import CheckpointError, RequestError
from iwp_export.exporter.checkpoint import open_checkpoint
from iwp_export.models.llava_next import FAMILY
from iwp_export.pruning.settings import PruningSettings
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.processor import assistant_message, user_message

SETTINGS = PruningSettings(layer=1, keep=0.3)
TOLERANCE = 2e-4
SIZES = ((48, 64), (90, 41), (37, 300), (300, 37), (56, 56), (500, 490), (3, 400))
"""Heights and widths: landscape, portrait, extreme lines, one tile, larger than any canvas, and a line's height."""


def photo(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), np.uint8))


@pytest.fixture(scope="module")
def model(random_next: Path) -> Any:
    model = open_checkpoint(str(random_next)).load_model()
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def pipeline(random_next_bundle: Path) -> Pipeline:
    return iwp_export.load(str(random_next_bundle))


@pytest.fixture(scope="module")
def processor(random_next: Path) -> Any:
    from transformers import LlavaNextProcessor

    return LlavaNextProcessor.from_pretrained(random_next, backend="pil")


def inputs_of(processor: Any, text: str, images: list[Image.Image]) -> dict[str, torch.Tensor]:
    arrays = processor(images=images, text=text, return_tensors="np")
    return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


@pytest.mark.parametrize("size", SIZES)
def test_pixels_and_placeholders_are_transformers_own(pipeline: Pipeline, processor: Any, size: Any) -> None:
    image = photo(size)
    text = pipeline.processor.render([user_message("how many ?", 1)])
    expected = inputs_of(processor, text, [image])
    picture = pipeline.processor.image(image)
    np.testing.assert_array_equal(picture.inputs["pixel_values"], expected["pixel_values"][0].numpy())
    np.testing.assert_array_equal(pipeline.processor.token_ids(text, [picture]), expected["input_ids"][0].numpy())
    bounds = pipeline.manifest.vision
    assert bounds.tokens.least <= picture.num_tokens <= bounds.tokens.greatest
    assert bounds.dims["tiles"].least <= len(picture.inputs["pixel_values"]) <= bounds.dims["tiles"].greatest


@pytest.mark.parametrize("size", SIZES)
def test_features_are_transformers_own(pipeline: Pipeline, model: Any, processor: Any, size: Any) -> None:
    expected = inputs_of(processor, "<image>", [photo(size)])
    with torch.no_grad():
        theirs = model.model.get_image_features(expected["pixel_values"], expected["image_sizes"]).pooler_output[0]
    picture = pipeline.processor.image(photo(size))
    features = pipeline.session.encode(picture.inputs)
    np.testing.assert_allclose(features.value.numpy(), theirs.numpy(), atol=1e-5)  # type: ignore[attr-defined]


@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES[1:2], (SIZES[2], SIZES[0]), (SIZES[5], SIZES[3], SIZES[4])])
def test_tokens_equal_generate_when_nothing_is_pruned(
    pipeline: Pipeline, model: Any, processor: Any, sizes: Any
) -> None:
    images = [photo(size) for size in sizes]
    messages = [user_message("how many ?", 1), assistant_message("three"), user_message("what ?", len(images) - 1)]
    text = pipeline.processor.render(messages)
    inputs = inputs_of(processor, text, images)
    pictures = [pipeline.processor.image(image) for image in images]
    ids = pipeline.processor.token_ids(text, pictures)
    ours = pipeline.generate_ids(ids, pictures, keep=1.0, max_new_tokens=8, stop_at_eos=False, return_logits=True)
    theirs = model.generate(
        **inputs, max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    assert ours.token_ids == theirs.sequences[0, len(ids) :].tolist()
    np.testing.assert_allclose(np.array(ours.logits), torch.stack(theirs.logits)[:, 0].numpy(), atol=TOLERANCE)


def test_kept_tokens_and_logits_equal_the_reference(pipeline: Pipeline, model: Any) -> None:
    session = TorchSession(model, FAMILY, SETTINGS)
    reference = Pipeline(pipeline.manifest, pipeline.processor, session)
    for sizes in ([SIZES[0]], [SIZES[2], SIZES[5]]):
        pictures = [pipeline.processor.image(photo(size)) for size in sizes]
        text = pipeline.processor.render([user_message("what is the red digit ?", len(pictures))])
        ids = pipeline.processor.token_ids(text, pictures)
        options: dict[str, Any] = {"keep": 0.3, "max_new_tokens": 4, "stop_at_eos": False, "return_logits": True}
        a, b = (each.generate_ids(ids, pictures, **options) for each in (pipeline, reference))
        assert a.kept == b.kept and a.token_ids == b.token_ids
        assert a.visual_tokens_kept == SETTINGS.num_keep(sum(picture.num_tokens for picture in pictures))
        np.testing.assert_allclose(np.array(a.logits), np.array(b.logits), atol=TOLERANCE)


def test_several_turns_and_a_drawing_of_every_view(pipeline: Pipeline) -> None:
    chat = pipeline.chat(keep=0.5)
    first = chat.ask("how many ?", photo((48, 64)), max_new_tokens=2)
    second = chat.ask("what ?", [photo((90, 41)), photo((56, 56))], max_new_tokens=2)
    assert second.visual_tokens == sum(picture.num_tokens for picture in second.pictures)
    assert [len(picture.views) for picture in second.pictures[-2:]] == [2, 2]
    assert pipeline.draw_kept(first).width > pipeline.draw_kept(first).height
    for picture in (*first.pictures, *second.pictures):
        cells = np.concatenate([view.tokens.ravel() for view in picture.views])
        lines = picture.views[1].tokens.shape[0]
        assert len(set(cells.tolist())) == cells.size == picture.num_tokens - lines


def test_an_image_processor_of_other_canvases_is_refused(pipeline: Pipeline) -> None:
    outputs = pipeline.processor._images(images=[photo((48, 64))], return_tensors="np")
    with pytest.raises(RequestError, match=r"made 3 tiles of an image of 500 x 490 pixels, the model takes 5"):
        pipeline.processor.picture({**outputs, "image_sizes": np.array([[500, 490]])})
    with pytest.raises(RequestError, match="image_sizes must be one height and width"):
        pipeline.processor.picture({"pixel_values": outputs["pixel_values"]})


def test_canvases_must_be_whole_tiles(model: Any) -> None:
    config = type(model.config).from_dict(model.config.to_dict())
    for broken in ([[56, 100]], []):
        config.image_grid_pinpoints = broken
        with pytest.raises(CheckpointError, match="image_grid_pinpoints"):
            FAMILY.vision_info(config)


def test_the_model_is_found_by_its_type(random_next: Path) -> None:
    assert open_checkpoint(str(random_next)).family is FAMILY
