"""From token ids to the decoder's inputs: where images go, which tokens' queries score, how many stay."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from iwp_export.backends.session import Ints, StepInputs
from iwp_export.errors import RequestError, SettingsError
from iwp_export.pruning.settings import PruningSettings, Query, check_keep


def build_prompt(
    token_ids: Ints, visual: npt.NDArray[np.bool_], position_ids: Ints, settings: PruningSettings, keep: float | None
) -> StepInputs:
    """Inputs of a call with a whole prompt, or with a further turn of a conversation.

    Args:
        token_ids: int64 [S], with one image token for each visual token.
        visual: bool [S], true at visual tokens; the k-th one takes row k of the call's image features.
        position_ids: the family's, see `Family.positions`.
        settings: the bundle's pruning settings.
        keep: fraction of this call's visual tokens that stays, in (0, 1]; None is the settings' own.

    Raises:
        RequestError: no tokens, keep out of range, or a last token that could be pruned.
    """
    ids = token_ids
    check_request_keep(keep)
    if not ids.size:
        raise RequestError("the prompt is empty: it needs one token at least")
    num_visual = int(visual.sum())
    num_text = ids.size - num_visual
    num_kept = num_text + settings.num_keep(num_visual, keep)
    if visual[-1] and num_kept < ids.size:
        raise RequestError("the prompt ends with an image, whose last token could be pruned: put text after it")
    return StepInputs(
        input_ids=ids[None],
        feature_index=np.where(visual, np.cumsum(visual) - 1, -1)[None],
        query_index=query_index(visual, settings.scoring_query),
        position_ids=position_ids,
        num_kept=num_kept,
    )


def build_decode(token_id: int, position_ids: Ints) -> StepInputs:
    """Inputs of a call with one generated token at its unpruned position."""
    return StepInputs(
        input_ids=np.array([[token_id]], np.int64),
        feature_index=np.array([[-1]], np.int64),
        query_index=np.zeros(1, np.int64),
        position_ids=position_ids,
        num_kept=1,
    )


def query_index(visual: npt.NDArray[np.bool_], query: Query) -> Ints:
    """The tokens of a call whose queries score its visual tokens, int64 [Q], ascending, never empty.

    A call that lacks the tokens asked for (no text after its image, no image, no text) takes the nearest set that is
    not empty: all text, then all tokens.

    Args:
        visual: bool [S], true at visual tokens.
        query: which tokens are asked for (Sec. 4.1 of arXiv:2604.00757).
    """
    text = ~visual
    first = int(np.argmax(visual)) if visual.any() else -1
    chosen = text
    if query == "text_after_image":
        chosen = text & (np.arange(text.size) > first)
    elif query == "image":
        chosen = visual
    elif query == "last" and text.any():
        chosen = np.arange(text.size) == np.flatnonzero(text)[-1]
    for candidate in (chosen, text):
        if candidate.any():
            return np.flatnonzero(candidate).astype(np.int64)
    return np.arange(visual.size, dtype=np.int64)


def kept_patches(inputs: StepInputs, kept_index: Ints, counts: list[int]) -> list[list[int]]:
    """For each image of a call, the indices of its visual tokens that stayed, ascending.

    Args:
        inputs: the call.
        kept_index: int64 [K], as the session returned it.
        counts: visual tokens of each image of the call.
    """
    rows = inputs.feature_index[0, kept_index]
    rows = rows[rows >= 0]
    starts = np.cumsum([0, *counts])
    return [
        (rows[(rows >= start) & (rows < start + count)] - start).tolist()
        for start, count in zip(starts[:-1], counts, strict=True)
    ]


def check_request_keep(keep: float | None) -> None:
    """Refuse a request's keep ratio outside (0, 1].

    Raises:
        RequestError: `keep` is out of range.
    """
    try:
        if keep is not None:
            check_keep(keep)
    except SettingsError as error:
        raise RequestError(str(error)) from error
