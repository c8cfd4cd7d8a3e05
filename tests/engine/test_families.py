"""Every family's graphs become engines."""

from __future__ import annotations

from pathlib import Path

from iwp_export import api
from iwp_export.bundle.store import Bundle
from iwp_export.engine.build import BuildSettings
from iwp_export.engine.files import read_engine
from iwp_export.engine.flavour import Flavour
from iwp_export.engine.profiles import choose_limits, vision_profile


def test_llava_next(rtx: Flavour, random_next_bundle: Path, tmp_path: Path) -> None:
    """In float32. Tiles and visual tokens of an image are ranges of its engine, not constants."""
    manifest = Bundle.open(random_next_bundle).manifest
    assert vision_profile(manifest).shapes == {
        "pixel_values": ((3, 3, 56, 56), (5, 3, 56, 56), (5, 3, 56, 56)),
        "pack_index": ((16,), (70,), (88,)),
    }
    settings = BuildSettings(target="rtx", sm=["89"], max_images=2)
    limits = choose_limits(manifest.decoder, manifest.vision, max_images=2)
    assert (limits.max_prompt, limits.max_images) == (2 * 88 + 512, 2)
    _, info = read_engine(api.build(random_next_bundle, tmp_path / "next.plan", settings), "full")
    assert info.limits == limits
    assert {"next.plan", "next.vision.plan"} <= info.files.keys()
