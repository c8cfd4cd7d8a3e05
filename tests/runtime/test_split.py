"""Where a conversation's tokens are cut into calls."""

from __future__ import annotations

import numpy as np
import pytest

from iwp_export.backends.session import CallLimits
from iwp_export.runtime.conversation import common_length, split_calls

ROOMY = CallLimits(100, 4)


def visual_tokens(text: str) -> np.ndarray:
    """`v` is a visual token, anything else is text."""
    return np.array([letter == "v" for letter in text])


@pytest.mark.parametrize(
    ("turns", "limits", "calls"),
    [
        (["tvvt", "atvvt"], ROOMY, ["tvvt", "atvvt"]),
        (["tvvt", "att", "atvvt", "att"], ROOMY, ["tvvt", "attatvvt", "att"]),
        (["ttt", "attttt", "at"], CallLimits(4, 4), ["ttta", "tttt", "tat"]),
        (["tvvt", "aaaaaaatvvt"], CallLimits(5, 4), ["tvvt", "aaaaa", "aat", "vvt"]),
        (["tvvt", "aaatvvtt"], CallLimits(4, 2), ["tvvt", "aaat", "vvtt"]),
        (["tvvvvt", "att"], CallLimits(4, 2), ["t", "vvvvt", "att"]),  # too much for one turn stays so
    ],
)
def test_calls(turns: list[str], limits: CallLimits, calls: list[str]) -> None:
    whole = "".join(turns)
    turn_ends = np.cumsum([len(turn) for turn in turns]).tolist()
    ends = split_calls(visual_tokens(whole), turn_ends, limits)
    assert [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)] == calls


def test_limits_hold_for_all_tokens_and_for_visual_ones() -> None:
    assert CallLimits(4, 2).allow(visual_tokens("tvvt"))
    assert not CallLimits(3, 2).allow(visual_tokens("tvvt"))
    assert not CallLimits(4, 1).allow(visual_tokens("tvvt"))


def test_common_length() -> None:
    assert common_length(np.array([1, 2, 3]), np.array([1, 2, 4, 5])) == 2
    assert common_length(np.array([1, 2]), np.array([1, 2, 4, 5])) == 2
    assert common_length(np.array([7]), np.array([1])) == 0
