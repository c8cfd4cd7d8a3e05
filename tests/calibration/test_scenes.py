"""Scenes are drawn from the seed alone, and their answers follow from what is painted."""

import hashlib

import numpy as np
import pytest

from calibration.tiny_llava.batches import NO_VALUE, answer_to, patch_labels
from calibration.tiny_llava.scenes import (
    DIGIT_BOX,
    IMAGE_SIZE,
    PHOTO_FOLDER,
    Pools,
    build_pools,
    digit_rows,
    draw_scene,
    photos,
)
from calibration.tiny_llava.vocabulary import COLOUR_NAMES, COLOURS, KINDS, QUESTION_LENGTH, encode, question_text


@pytest.fixture(scope="module")
def pools() -> Pools:
    return build_pools("train", seed=3, variants=1, backgrounds=8)


def test_the_same_seed_draws_the_same_scenes(pools: Pools) -> None:
    again = build_pools("train", seed=3, variants=1, backgrounds=8)
    first, second = (draw_scene(p, np.random.default_rng(7)) for p in (pools, again))
    assert np.array_equal(first.image, second.image)
    assert first.digits == second.digits
    other = draw_scene(pools, np.random.default_rng(8))
    assert not np.array_equal(first.image, other.image)


def test_scenes_hold_three_to_five_digits_apart_from_each_other(pools: Pools) -> None:
    rng = np.random.default_rng(0)
    counts = set()
    for _ in range(200):
        digits = draw_scene(pools, rng).digits
        counts.add(len(digits))
        assert len({digit.value for digit in digits}) == len({digit.colour for digit in digits}) == len(digits)
        painted = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=int)
        for left, top, right, bottom in (digit.box for digit in digits):
            assert (right - left, bottom - top) == (DIGIT_BOX, DIGIT_BOX)
            painted[top:bottom, left:right] += 1
        assert painted.sum() == len(digits) * DIGIT_BOX**2  # no box leaves the image
        assert painted.max() == 1
    assert counts == {3, 4, 5}


def test_a_digit_is_painted_in_its_colour(pools: Pools) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        scene = draw_scene(pools, rng)
        for digit in scene.digits:
            left, top, right, bottom = digit.box
            window = scene.image[top:bottom, left:right].astype(int)
            names = list(COLOURS)
            distance = np.abs(window[..., None, :] - np.array([COLOURS[name] for name in names])).sum(-1)
            nearest, _ = divmod(int(distance.T.reshape(len(names), -1).min(axis=1).argmin()), 1)
            assert names[nearest] == digit.colour


def test_patch_labels_mark_the_patches_whose_centre_a_box_holds(pools: Pools) -> None:
    scene = draw_scene(pools, np.random.default_rng(2))
    values, colours = patch_labels(scene)
    for digit in scene.digits:
        ours = np.flatnonzero(values == digit.value)
        assert len(ours) == 4  # boxes are two patches wide and high
        assert {COLOUR_NAMES[i] for i in colours[ours]} == {digit.colour}
    assert (values == NO_VALUE).sum() == 64 - 4 * len(scene.digits)


def test_answers_agree_with_the_painted_digits(pools: Pools) -> None:
    scene = draw_scene(pools, np.random.default_rng(3))
    for index, digit in enumerate(scene.digits):
        assert answer_to(scene, "digit-of-colour", index) == str(digit.value)
        assert answer_to(scene, "colour-of-digit", index) == digit.colour
        assert answer_to(scene, "count", index) == str(len(scene.digits))
        for kind in KINDS:
            assert len(encode(question_text(kind, digit.value, digit.colour))) == QUESTION_LENGTH


def test_held_out_digits_and_photos_are_not_trained_on() -> None:
    from sklearn.datasets import load_digits

    train, heldout = digit_rows("train"), digit_rows("heldout")
    assert not set(train) & set(heldout)
    assert len(train) + len(heldout) == len(load_digits().target)

    def prints(split: str) -> set[str]:
        return {hashlib.sha256(path.read_bytes()).hexdigest() for path in (PHOTO_FOLDER / split).glob("*.png")}

    assert len(prints("train")) == len(prints("heldout")) == 3
    assert not prints("train") & prints("heldout")
    shown = [{hashlib.sha256(photo.tobytes()).hexdigest() for photo in photos(split)} for split in ("train", "heldout")]
    assert not shown[0] & shown[1]
