"""From token ids to the decoder's inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from iwp_export.errors import RequestError
from iwp_export.pruning.settings import PruningSettings
from iwp_export.runtime.generate import kept_patches, query_index
from tests.runtime.toy import build_decode, build_prompt

IMAGE = 4
PROMPT = [2, 5, IMAGE, IMAGE, IMAGE, IMAGE, 8, IMAGE, IMAGE, 9, 6]


def test_features_positions_and_budget() -> None:
    inputs = build_prompt(PROMPT, IMAGE, PruningSettings(), keep=0.4, start=10)
    assert inputs.feature_index.tolist() == [[-1, -1, 0, 1, 2, 3, -1, 4, 5, -1, -1]]
    assert inputs.position_ids.tolist() == [list(range(10, 21))]
    assert inputs.num_kept == 5 + 3  # ceil(0.4 * 6)
    assert inputs.input_ids.dtype == inputs.feature_index.dtype == inputs.position_ids.dtype == np.int64
    assert inputs.query_index.dtype == np.int64 and inputs.query_index.tolist() == [6, 9, 10]


def test_default_keep_is_the_exported_one_and_keep_1_keeps_all() -> None:
    assert build_prompt(PROMPT, IMAGE, PruningSettings(keep=0.5)).num_kept == 5 + 3
    assert build_prompt(PROMPT, IMAGE, PruningSettings(), keep=1).num_kept == len(PROMPT)
    assert build_prompt([2, 7], IMAGE, PruningSettings()).num_kept == 2


@pytest.mark.parametrize(
    ("query", "ids", "expected"),
    [
        ("text_after_image", PROMPT, [6, 9, 10]),
        ("text", PROMPT, [0, 1, 6, 9, 10]),
        ("image", PROMPT, [2, 3, 4, 5, 7, 8]),
        ("last", PROMPT, [10]),
        ("text_after_image", [2, 5, IMAGE], [0, 1]),  # no text after it: all text
        ("text_after_image", [2, 5, 7], [0, 1, 2]),
        ("image", [2, 5, 7], [0, 1, 2]),
        ("last", [2, IMAGE, IMAGE], [0]),
        ("text_after_image", [IMAGE, IMAGE], [0, 1]),  # no text at all: everything, since one query is needed at least
        ("last", [IMAGE], [0]),
    ],
)
def test_query_index(query: Any, ids: list[int], expected: list[int]) -> None:
    assert query_index(np.array(ids) == IMAGE, query).tolist() == expected


def test_decode_step() -> None:
    inputs = build_decode(9, 77)
    assert inputs.input_ids.tolist() == [[9]] and inputs.position_ids.tolist() == [[77]]
    assert inputs.feature_index.tolist() == [[-1]] and inputs.query_index.tolist() == [0] and inputs.num_kept == 1


@pytest.mark.parametrize("keep", [0, -1, 1.1, float("nan"), "all", True])
def test_keep_out_of_range(keep: Any) -> None:
    with pytest.raises(RequestError, match="keep must be"):
        build_prompt(PROMPT, IMAGE, PruningSettings(), keep=keep)


def test_impossible_prompts() -> None:
    with pytest.raises(RequestError, match="empty"):
        build_prompt([], IMAGE, PruningSettings())
    with pytest.raises(RequestError, match="ends with an image"):
        build_prompt([2, IMAGE, IMAGE], IMAGE, PruningSettings(), keep=0.5)
    assert build_prompt([2, IMAGE, IMAGE], IMAGE, PruningSettings(), keep=1).num_kept == 3


def test_kept_patches_per_image() -> None:
    inputs = build_prompt(PROMPT, IMAGE, PruningSettings(), keep=0.5)
    kept = np.array([0, 1, 3, 5, 6, 8, 9, 10])
    assert kept_patches(inputs, kept, [4, 2]) == [[1, 3], [1]]
    assert kept_patches(build_prompt([2, 7], IMAGE, PruningSettings()), np.array([0, 1]), []) == []
