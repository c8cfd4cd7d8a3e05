"""The shapes that engines are built for."""

from __future__ import annotations

from pathlib import Path

import pytest

from iwp_export.bundle.manifest import Bounds, Manifest
from iwp_export.bundle.store import Bundle
from iwp_export.engine.profiles import EngineLimits, choose_limits, decoder_profiles, vision_profile
from iwp_export.errors import SettingsError


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    """64 visual tokens an image, 256 positions."""
    return Bundle.open(tiny_bundle).manifest


def test_defaults_follow_the_model(manifest: Manifest) -> None:
    assert choose_limits(manifest.decoder, manifest.vision) == EngineLimits(256, 256, 1)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"max_context": 257}, "max_context must be 2 to 256, got 257"),
        ({"max_prompt": 300}, "max_prompt must be 1 to 256, got 300"),
        ({"max_images": 0}, "max_images must be 1 or more, got 0"),
        ({"max_images": 4}, "4 image.s. make 256 visual tokens, which leave no room for text"),
    ],
)
def test_contradictions_are_refused(manifest: Manifest, choice: dict[str, int], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        choose_limits(manifest.decoder, manifest.vision, **choice)


def test_prefill_and_decode(manifest: Manifest) -> None:
    limits = EngineLimits(max_context=200, max_prompt=150, max_images=2)
    prefill, decode = decoder_profiles(manifest, limits, keep=0.5)
    assert prefill.shapes["input_ids"] == ((1, 1), (1, 112), (1, 150))
    assert prefill.shapes["image_features"] == ((1, 128), (64, 128), (128, 128))
    assert prefill.shapes["past_key_values.0.key"] == ((1, 2, 0, 32), (1, 2, 0, 32), (1, 2, 199, 32))
    assert prefill.shapes["query_index"] == ((1,), (48,), (150,)) and decode.shapes["query_index"] == ((1,),) * 3
    assert prefill.values == {"num_kept": Bounds(1, 32 + 48, 150)}
    assert decode.shapes["input_ids"] == ((1, 1), (1, 1), (1, 1))
    assert decode.shapes["past_key_values.0.key"] == ((1, 2, 1, 32), (1, 2, 176, 32), (1, 2, 199, 32))
    assert decode.shapes["past_key_values.7.value"] == ((1, 2, 1, 32), (1, 2, 144, 32), (1, 2, 199, 32))
    assert decode.values == {"num_kept": Bounds(1, 1, 1)}
    assert prefill.shapes.keys() | prefill.values == {t.name for t in manifest.graphs["decoder"].inputs}


def test_vision_takes_one_image_a_call(manifest: Manifest) -> None:
    assert vision_profile(manifest).shapes == {"pixel_values": ((1, 3, 112, 112),) * 3}


def test_a_range_must_rise() -> None:
    with pytest.raises(ValueError, match="must rise"):
        Bounds(3, 2, 4)
