"""Cutting a conversation's tokens into calls that a backend can hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from iwp_export.backends.session import CallLimits


def split_calls(visual: npt.NDArray[np.bool_], turn_ends: Sequence[int], limits: CallLimits) -> list[int]:
    """Where each call ends: one call for each turn with images, so that these are pruned as when the turn was new.

    Text before a call's images is run ahead, in pieces, where the call would be too long. What is too long then, a turn
    of too many images for one, stays so: it could not be run when it was new either.

    Args:
        visual: bool [S], true at visual tokens.
        turn_ends: where the tokens of each user's turn end, ascending; the last is S.
        limits: what one call may hold.
    """
    ends: list[int] = []
    start = 0
    for end in turn_ends:
        if not visual[start:end].any() and end < visual.size:
            continue  # text: it goes with the next turn that has images
        while end - start > limits.tokens:
            text = int(np.argmax(visual[start:end])) if visual[start:end].any() else end - start
            if text == 0:
                break
            start += min(text, limits.tokens)
            ends.append(start)
        ends.append(end)
        start = end
    return ends


def common_length(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> int:
    """How many tokens two sequences have in common from their beginning."""
    length = min(first.size, second.size)
    differing = np.flatnonzero(first[:length] != second[:length])
    return int(differing[0]) if differing.size else length
