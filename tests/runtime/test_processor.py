"""The processor of tiny-llava, against transformers' own."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iwp_export.errors import BundleError, RequestError
from iwp_export.runtime.processor import Processor, assistant_message, user_message
from tests.runtime.toy import ASSETS, FAMILY, PROCESSOR_FILES, VISION

IMAGE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 150, 3), np.uint8))


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(ASSETS, VISION, FAMILY)


@pytest.mark.parametrize("num_images", [0, 1, 2])
def test_equals_transformers(processor: Processor, num_images: int) -> None:
    from transformers import AutoProcessor

    reference = AutoProcessor.from_pretrained(ASSETS)
    messages: list[Any] = [user_message("what colour is the digit 3 ?", num_images)]
    messages += [assistant_message("red"), user_message("how many ?", 0)]
    text = reference.apply_chat_template(messages, add_generation_prompt=True)
    assert processor.render(messages) == text
    images = [IMAGE, IMAGE.rotate(90)][:num_images]
    pictures = [processor.image(image) for image in images]
    expected = reference(images=images or None, text=text, return_tensors="np")
    np.testing.assert_array_equal(processor.token_ids(text, pictures), expected["input_ids"][0])
    if images:
        pixels = np.concatenate([picture.inputs["pixel_values"] for picture in pictures])
        np.testing.assert_array_equal(pixels, expected["pixel_values"])


def test_seen_is_the_resized_image(processor: Processor) -> None:
    seen = processor.image(IMAGE).views[0].seen
    resized = np.asarray(IMAGE.resize((112, 112), Image.Resampling.BICUBIC))
    assert np.abs(seen.astype(int) - resized).max() <= 1


def test_bos_is_not_doubled(processor: Processor) -> None:
    assert processor.token_ids("user red", []).tolist() == processor.token_ids("<bos> user red", []).tolist()


def test_placeholders_must_match_the_images(processor: Processor) -> None:
    with pytest.raises(RequestError, match=r"1 image\(s\) were given, but .* 2 placeholder\(s\) <image>"):
        processor.token_ids(processor.render([user_message("what is <image> ?", 1)]), [processor.image(IMAGE)])
    with pytest.raises(RequestError, match="0 image"):
        processor.token_ids("<image> what", [])


def test_image_of_another_size_than_the_model_takes(processor: Processor) -> None:
    other = Processor(ASSETS, replace(VISION, geometry={"pixels": 336, "side": 24}), FAMILY)
    with pytest.raises(RequestError, match="336"):
        other.image(IMAGE)


def copy_processor(target: Path, **files: str) -> Path:
    for name in PROCESSOR_FILES:
        shutil.copy(ASSETS / name, target)
    return target


def test_no_chat_template(tmp_path: Path) -> None:
    folder = copy_processor(tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(RequestError, match="no chat template"):
        Processor(folder, VISION, FAMILY).render([user_message("what", 0)])


def test_the_older_place_of_the_chat_template(tmp_path: Path, processor: Processor) -> None:
    folder = copy_processor(tmp_path)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    messages = [user_message("what", 1)]
    assert Processor(folder, VISION, FAMILY).render(messages) == processor.render(messages)


def test_a_template_that_refuses(tmp_path: Path) -> None:
    folder = copy_processor(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestError, match="roles must alternate"):
        Processor(folder, VISION, FAMILY).render([user_message("what", 0)])


def test_damaged_folders(tmp_path: Path) -> None:
    folder = copy_processor(tmp_path)
    with pytest.raises(BundleError, match="beyond the tokenizer"):
        Processor(folder, replace(VISION, image_token_id=32000), FAMILY)
    (folder / "processor_config.json").unlink()
    with pytest.raises(BundleError, match="cannot load the processor"):
        Processor(folder, VISION, FAMILY)
    with pytest.raises(BundleError, match="cannot load the processor"):
        Processor(tmp_path / "nothing", VISION, FAMILY)


def test_images_that_resizing_would_blow_up(tmp_path: Path) -> None:
    """A line of a pixel's width whose short side becomes 112, and one that is padded to a square first."""
    folder = copy_processor(tmp_path)
    file = folder / "processor_config.json"
    config = json.loads(file.read_text())
    line = Image.new("RGB", (40_000, 1))
    config["image_processor"] |= {"size": {"shortest_edge": 112}, "do_center_crop": True}
    file.write_text(json.dumps(config))
    with pytest.raises(RequestError, match="40000 x 1 pixels would be resized to 112 x 4,480,000: crop it"):
        Processor(folder, VISION, FAMILY).image(line)
    assert Processor(folder, VISION, FAMILY).image(IMAGE).num_tokens == 64
    config["image_processor"] |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    config["image_processor"]["size"] = {"height": 112, "width": 112}
    file.write_text(json.dumps(config))
    with pytest.raises(RequestError, match="would be padded to a square"):
        Processor(folder, VISION, FAMILY).image(line)
    assert Processor(folder, VISION, FAMILY).image(IMAGE).num_tokens == 64


def test_decompression_bombs_are_refused(tmp_path: Path) -> None:
    """A small file of 400 million pixels: Pillow's own limit holds."""
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(RequestError, match="decompression bomb"):
        Processor(ASSETS, VISION, FAMILY).image(tmp_path / "bomb.png")
