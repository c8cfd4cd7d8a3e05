"""Images as requests bring them, the processor's pixels, and drawings of what was kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iwp_export.errors import RequestError
from iwp_export.models.common.family import Colours, Picture, View
from iwp_export.runtime.drawing import DIMMED_LIGHT, GAP, OUTLINE, draw_kept
from iwp_export.runtime.images import load_image

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def test_path_image_and_array_are_the_same(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(PIXELS), PIXELS, PIXELS[::1]):
        np.testing.assert_array_equal(np.asarray(load_image(source)), PIXELS)


def test_photos_are_turned_upright_and_other_modes_become_rgb(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    assert load_image(tmp_path / "a.png").size == (20, 30)
    assert load_image(Image.fromarray(PIXELS).convert("RGBA")).mode == "RGB"
    assert load_image(Image.fromarray(PIXELS).convert("P")).mode == "RGB"


def test_unreadable_images(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"cannot read the image .*no\.png: there is no such file"):
        load_image(tmp_path / "no.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(RequestError, match="cannot identify image file"):
        load_image(tmp_path / "text.png")
    Image.fromarray(PIXELS).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:600])
    with pytest.raises(RequestError, match="cannot read the image"):
        load_image(tmp_path / "cut.png")
    with pytest.raises(RequestError, match="cannot read the image"):
        load_image(tmp_path)


def test_images_that_fail_when_their_pixels_are_read(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:600])
    closed = Image.open(tmp_path / "whole.png")
    closed.close()
    for late in (Image.open(tmp_path / "cut.png"), closed, Image.new("RGB", (0, 5))):
        with pytest.raises(RequestError, match=r"cannot read the image RGB \d+ x \d+: "):
            load_image(late)


@pytest.mark.parametrize(
    "array",
    [PIXELS[..., 0], PIXELS.astype(np.float32), PIXELS.transpose(2, 0, 1), np.zeros((0, 3, 3), np.uint8), [1, 2], b"x"],
)
def test_other_things_are_no_images(array: Any) -> None:
    with pytest.raises(RequestError, match="image"):
        load_image(array)


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32", ">u2"])
@pytest.mark.parametrize("ending", ["", ".tif"])
def test_pixels_of_more_than_8_bits_are_not_clipped(tmp_path: Path, dtype: str, ending: str) -> None:
    """PIL's convert would make 300 and 60,000 white; the error tells the range and how to scale it."""
    image: Any = Image.fromarray(np.array([[300, 60_000], [300, 20]], dtype))
    if ending:
        image.save(tmp_path / f"depth{ending}")
        image = tmp_path / f"depth{ending}"
    with pytest.raises(RequestError, match=r"more than 8 bits \(mode (I|I;16|I;16B|F), 20 to 60000\); scale the range"):
        load_image(image)


def test_16_bits_in_png(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "depth.png")
    with pytest.raises(RequestError, match="more than 8 bits"):
        load_image((tmp_path / "depth.png").read_bytes())


def test_heic_names_the_package_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    start = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    (tmp_path / "photo.jpg").write_bytes(start)  # phones call them so
    for source in (tmp_path / "photo.jpg", start):
        with pytest.raises(RequestError, match=r"HEIC needs pip install pillow-heif; or save it as PNG or JPEG"):
            load_image(source)


def test_seen_is_what_was_normalised() -> None:
    mean, std = (0.48, 0.45, 0.4), (0.27, 0.26, 0.28)
    values = ((PIXELS / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_array_equal(Colours(mean, std).seen(values), PIXELS)


def test_pictures_with_equal_inputs_have_equal_digests() -> None:
    def digest(**inputs: Any) -> bytes:
        return Picture(inputs, 1, ()).digest

    assert digest(pixel_values=PIXELS) == digest(pixel_values=PIXELS.copy())
    assert digest(pixel_values=PIXELS) != digest(pixel_values=PIXELS[:, ::-1])
    assert digest(pixel_values=PIXELS) != digest(pixel_values=PIXELS, pack_index=np.arange(3))
    assert digest(a=np.zeros((2, 3))) != digest(a=np.zeros((3, 2)))


def a_view(height: int, width: int, rows: int, columns: int, light: int = 0, first: int = 0) -> View:
    seen = np.full((height, width, 3), light, np.uint8)
    return View(seen, first + np.arange(rows * columns).reshape(rows, columns))


def a_picture(*views: View) -> Picture:
    return Picture({}, sum(view.tokens.size for view in views), views)


def test_drawing_keeps_kept_patches_and_dims_the_others() -> None:
    image = draw_kept(a_picture(a_view(8, 12, 2, 3, 200)), [0, 5], min_side=40)
    assert image.size == (60, 40)
    pixels = np.asarray(image)
    inside = pixels[10::20, 10::20].astype(int)
    assert (inside[0, 0] == 200).all() and (inside[1, 2] == 200).all()
    assert (abs(inside[0, 1:] - 200 * DIMMED_LIGHT) <= 1).all()
    assert tuple(pixels[10, 20]) == OUTLINE  # between a kept and a dropped patch
    assert tuple(pixels[10, 40]) != OUTLINE


def test_drawing_follows_the_proportions_and_never_shrinks() -> None:
    assert draw_kept(a_picture(a_view(336, 672, 24, 48)), [], min_side=100).size == (672, 336)
    assert draw_kept(a_picture(a_view(112, 112, 8, 8)), range(64)).size == (768, 768)


@pytest.mark.parametrize("kept", [[-1], [64]])
def test_patches_outside_the_grid(kept: list[int]) -> None:
    with pytest.raises(RequestError, match=r"within 0 and 63"):
        draw_kept(a_picture(a_view(112, 112, 8, 8)), kept)


def test_views_are_drawn_side_by_side() -> None:
    image = draw_kept(a_picture(a_view(8, 8, 2, 2, 200), a_view(8, 16, 2, 4, 200, first=4)), [0, 5], min_side=40)
    assert image.size == (40 + GAP + 80, 40)
    middle = np.asarray(image)[10, [10, 30, 40 + GAP + 10, 40 + GAP + 30], 0].astype(int)
    dim = round(200 * DIMMED_LIGHT)
    assert abs(middle - [200, dim, dim, 200]).max() <= 1
