"""The numpy oracle of IWP selection, against which every other implementation is tested. Needs numpy alone."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from iwp_export.pruning.importance import token_importance
from iwp_export.pruning.settings import PruningSettings, Similarity, chunk_schedule

Floats = npt.NDArray[np.floating[Any]]

PENALTY_FLOOR = 0.01
"""A duplicate keeps this share of its priority at least (Algorithm 1)."""

TOLERANCE = 1e-5
"""Priorities nearer than this are a tie: float32 sums of another order differ by as much."""

REPLAYS, BRANCHES = 400, 40
"""Orders of near ties that `selection_gap` tries at most, and that each of them leads to."""

COVERAGE_FLOOR = 1e-4
"""A token of which less is left unexplained counts as explained: what float32 leaves there is rounding."""


def select_tokens(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    key_rotated: npt.ArrayLike,
    value: npt.ArrayLike,
    num_keep: int,
    **options: Any,
) -> npt.NDArray[np.int64]:
    """Choose `num_keep` of n visual tokens by importance and duplication of their rank-1 updates (Algorithm 1).

    Args:
        query: [H, d], the mean query of the text tokens, before RoPE; or [H, Q, d], several queries.
        key: [Hkv, n, d], the visual tokens' keys before RoPE (importance); H is a multiple of Hkv.
        key_rotated: [Hkv, n, d], the same keys after RoPE (duplication).
        value: [Hkv, n, dv].
        num_keep: tokens to choose, 0 to n.
        options: settings of importance and selection, see `PruningSettings`.

    Returns:
        The chosen indices, ascending, int64 [num_keep]. All arithmetic is float32; ties go to the lower index.

    Raises:
        ValueError: shapes that do not fit, or `num_keep` outside 0 to n.
        SettingsError: an option is out of range.

    Source: arXiv:2604.00757, Eq. 10, Eq. 12, Algorithm 1.
    """
    settings = PruningSettings(**options)
    q, k, r, v = (np.asarray(x, dtype=np.float32) for x in (query, key, key_rotated, value))
    q = q[:, None] if q.ndim == 2 else q
    if q.ndim != 3 or k.ndim != 3 or k.shape != r.shape or v.shape[:2] != k.shape[:2] or q.shape[2] != k.shape[2]:
        raise ValueError(f"shapes do not fit: query {q.shape}, key {k.shape}, rotated {r.shape}, value {v.shape}")
    if q.shape[0] % k.shape[0]:
        raise ValueError(f"{q.shape[0]} query heads are no multiple of {k.shape[0]} key/value heads")
    scores = np.zeros(0, np.float32)
    if k.shape[1]:
        scores = token_importance(np, q[None], k[None], v[None], np.arange(k.shape[1])[None], **settings.scoring())[0]
    return select_by_importance(scores, r, v, num_keep, **settings.selection())


def select_by_importance(
    importance: npt.ArrayLike, key: npt.ArrayLike, value: npt.ArrayLike, num_keep: int, **selection: Any
) -> npt.NDArray[np.int64]:
    """Choose among the n visual tokens of a sample: what the op does once text is set aside.

    Args:
        importance: [n], brought to [0, 1] here; all ones if they are equal. `coverage` ignores it.
        key: [Hkv, n, d], the keys that duplication compares (after RoPE by default).
        value: [Hkv, n, dv].
        num_keep: tokens to choose, 0 to n.
        selection: what `PruningSettings.selection` returns.

    Returns:
        The chosen indices, ascending, int64 [num_keep]. All arithmetic is float32; ties go to the lower index.

    Raises:
        ValueError: shapes that do not fit, or `num_keep` outside 0 to n.
    """
    settings = PruningSettings(**selection)
    scores, k, v = (np.asarray(x, dtype=np.float32) for x in (importance, key, value))
    if k.ndim != 3 or v.ndim != 3 or v.shape[:2] != k.shape[:2] or scores.shape != k.shape[1:2]:
        raise ValueError(f"shapes do not fit: importance {scores.shape}, key {k.shape}, value {v.shape}")
    n = k.shape[1]
    if not 0 <= num_keep <= n:
        raise ValueError(f"num_keep must be within 0 and {n}, got {num_keep}")
    if num_keep == n:
        return np.arange(n, dtype=np.int64)
    chosen = np.zeros(n, bool)
    for new, _ in _rounds(scores, k, v, _largest, num_keep, settings):
        chosen[new] = True
    return np.flatnonzero(chosen).astype(np.int64)


def selection_gap(
    chosen: npt.ArrayLike,
    importance: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    *,
    tolerance: float = TOLERANCE,
    **selection: Any,
) -> float:
    """How far a choice is from one that the method allows, in units of the priority's range [0, 1].

    The rounds run in float64, each taking the best of the chosen tokens; the gap is the most by which a token that
    was left out beats one that was taken. Implementations round otherwise, so where two chosen tokens are within the
    tolerance of each other either may have been first, and what follows depends on which: if the gap is above the
    tolerance, other orders of such near ties are tried, up to `REPLAYS`. A gap within the tolerance means that some
    order of these tokens is a path on which each pick is the best but for rounding; if none was found, the gap is that
    of the order of their priorities.

    Args:
        chosen: indices that some implementation returned for the other arguments, which are `select_by_importance`'s.
        tolerance: what counts as a tie.
    """
    scores, k, v = (np.asarray(x, dtype=np.float64) for x in (importance, key, value))
    settings = PruningSettings(**selection)
    return _gap(chosen, lambda pick, count: _rounds(scores, k, v, pick, count, settings), k.shape[1], tolerance)


def selection_gap_of_pairs(
    chosen: npt.ArrayLike,
    importance: npt.ArrayLike,
    alike: npt.ArrayLike,
    *,
    tolerance: float = TOLERANCE,
    **selection: Any,
) -> float:
    """`selection_gap` from what `pair_likeness` keeps of keys and values."""
    scores, pairs = (np.asarray(x, dtype=np.float64) for x in (importance, alike))
    settings = PruningSettings(**selection)

    def rounds(pick: Pick, count: int) -> Rounds:
        if settings.select == "coverage":
            return _coverage_rounds(np.diag(pairs).copy(), lambda new: pairs[:, new], pick, count)
        return _mmr_rounds(scores, lambda new: pairs[:, new], pick, count, settings)

    return _gap(chosen, rounds, len(scores), tolerance)


def pair_likeness(key: npt.ArrayLike, value: npt.ArrayLike, **selection: Any) -> npt.NDArray[np.float32]:
    """How alike each two of n visual tokens are to a selection, float32 [n, n], symmetric.

    It is the mean over heads of their similarity (`coverage`) or of its square (`mmr`), and all that a selection takes
    of keys and values [Hkv, n, d].
    """
    settings = PruningSettings(**selection)
    k, v = (np.asarray(x, dtype=np.float64) for x in (key, value))
    total, tokens = np.zeros((k.shape[1], k.shape[1])), np.arange(k.shape[1])
    for head in range(len(k)):  # one at a time: all of them can take gigabytes
        similar = likeness(np, k[head : head + 1], v[head : head + 1], tokens, settings.similarity)[0]
        total += similar if settings.select == "coverage" else np.square(similar)
    return (total / len(k)).astype(np.float32)


Rounds = Iterator[tuple[npt.NDArray[np.intp], Floats]]
"""Who is taken in each round of a selection, and the priorities [n] that decided; -inf for those taken before."""
Pick = Callable[[Floats, int], npt.NDArray[np.intp]]
"""From priorities [n] and a number of tokens to the tokens of a round."""
Columns = Callable[[npt.NDArray[np.intp]], Floats]
"""From tokens just chosen to how alike every token is to each of them, [n, len(new)]."""
Swap = tuple[int, int, int]
"""In a round, a token that is left for later, and one that is taken in its place."""


def _largest(priority: Floats, count: int) -> npt.NDArray[np.intp]:
    """The `count` largest; of equal ones the first, since a stable sort keeps their order."""
    if count == 1:
        return np.array([np.argmax(priority)])
    return np.argsort(-priority, kind="stable")[:count]


def _gap(chosen: npt.ArrayLike, rounds: Callable[[Pick, int], Rounds], n: int, tolerance: float) -> float:
    """The gap of the order of priorities, or of a path within the tolerance that differs from it in near ties; those
    with fewer differences are tried first."""
    claimed = np.zeros(n, bool)
    claimed[np.asarray(chosen, dtype=np.intp)] = True
    if claimed.all() or not claimed.any():
        return 0.0
    found, swaps = _replay(claimed, rounds, (), tolerance)
    plans: deque[tuple[Swap, ...]] = deque((swap,) for swap in swaps)
    for _ in range(REPLAYS):
        if not plans or found <= tolerance or math.isnan(found):
            break
        plan = plans.popleft()
        gap, swaps = _replay(claimed, rounds, plan, tolerance)
        found = gap if gap <= tolerance else found
        plans.extend((*plan, swap) for swap in swaps)
    return found


def _replay(
    claimed: npt.NDArray[np.bool_], rounds: Callable[[Pick, int], Rounds], plan: tuple[Swap, ...], tolerance: float
) -> tuple[float, list[Swap]]:
    """The gap of one order of the claimed tokens, and the swaps before it leaves the tolerance that would give another
    order, the nearest ties first. An order with swaps is left there, the order of priorities is followed to its end."""
    planned = {number: (left, taken) for number, left, taken in plan}
    last = max(planned, default=-1)
    swaps: list[tuple[float, Swap]] = []
    number, gap = -1, -math.inf

    def pick(priority: Floats, count: int) -> npt.NDArray[np.intp]:
        nonlocal number
        number += 1
        mine = np.where(claimed, priority, -np.inf)
        order = _largest(mine, int(np.isfinite(mine).sum()))
        new = order[:count]
        if number in planned:
            left, taken = planned[number]
            new = np.append(new[new != left], taken)
        elif number > last and gap <= tolerance:
            for later in order[count:]:
                ties = new[mine[new] - mine[later] <= tolerance]
                if not len(ties):
                    break
                swaps.extend((float(mine[tie] - mine[later]), (number, int(tie), int(later))) for tie in ties)
        return new

    for new, priority in rounds(pick, int(claimed.sum())):
        if len(new) == 0:  # numbers that are not finite
            return math.nan, []
        gap = max(gap, float(priority[~claimed].max() - priority[new].min()))
        if math.isnan(gap) or (plan and gap > tolerance):
            break
    return gap, [swap for _, swap in sorted(swaps)[:BRANCHES]]


def _rounds(scores: Floats, key: Floats, value: Floats, pick: Pick, count: int, settings: PruningSettings) -> Rounds:
    """Rounds of a selection in which `pick` takes tokens by their priorities."""
    similarity = settings.similarity
    if settings.select == "coverage":
        left = self_similarity(np, key, value, similarity)
        return _coverage_rounds(left, lambda new: likeness(np, key, value, new, similarity).mean(axis=0), pick, count)
    return _mmr_rounds(scores, lambda new: token_duplication(key, value, new, similarity), pick, count, settings)


def _mmr_rounds(scores: Floats, duplication: Columns, pick: Pick, count: int, settings: PruningSettings) -> Rounds:
    """Algorithm 1."""
    priority = normalised(scores)
    alive = np.ones(len(scores), bool)
    for size in chunk_schedule(count, settings.chunk, settings.growth):
        open_ = np.where(alive, priority, -np.inf)
        new = pick(open_, size)
        yield new, open_
        alive[new] = False
        duplicate = duplication(new)
        if settings.duplication_norm == "minmax":
            duplicate = minmax(np, duplicate, duplicate[alive])
        share = 1 - priority.dtype.type(settings.penalty) * duplicate.max(axis=1)
        priority = priority * np.maximum(priority.dtype.type(PENALTY_FLOOR), share)


def _coverage_rounds(left: Floats, similarity: Columns, pick: Pick, count: int) -> Rounds:
    """Greedy pivoted Cholesky of the tokens' mean similarity: each round takes the token that is explained least.

    Args:
        left: [n], each token's similarity to itself.
        similarity: of every token to tokens just taken.
        pick, count: see `_rounds`.
    """
    columns = np.zeros((count, len(left)), left.dtype)
    alive = np.ones(len(left), bool)
    for taken in range(count):
        unexplained = np.where(alive, np.where(left < COVERAGE_FLOOR, left.dtype.type(0), left), -np.inf)
        new = pick(unexplained, 1)
        yield new, unexplained
        best = int(new[0])
        alive[best] = False
        if unexplained[best] > 0:
            similar = similarity(new)[:, 0]
            column = (similar - columns[:taken, best] @ columns[:taken]) / np.sqrt(left[best])
            columns[taken] = column
            left = left - np.square(column)


def normalised(importance: Floats) -> Floats:
    """Importance [n] brought to [0, 1] over a sample's visual tokens: the priorities of the first round."""
    return minmax(np, importance, importance)


def token_duplication(
    key: Floats, value: Floats, new: npt.NDArray[np.intp], similarity: Similarity = "dual_weight"
) -> Floats:
    """Squared similarity of every token to each of `new`, averaged over key/value heads, float32 [n, len(new)].

    Args:
        key: [Hkv, n, d]. value: [Hkv, n, dv]. float32. new: indices of the tokens just chosen.
    """
    return np.square(likeness(np, key, value, new, similarity)).mean(axis=0)


def likeness(xp: Any, key: Any, value: Any, new: Any, similarity: Similarity) -> Any:
    """Similarity of every token to each of `new`, [Hkv, n, len(new)]; `xp` is the arrays' module, numpy or torch."""
    if similarity in ("value", "key"):
        return _cosine(xp, key if similarity == "key" else value, new)
    square = xp.square(key).sum(-1)[..., None]  # [Hkv, n, 1]
    distance = square + square[:, new].swapaxes(1, 2) - 2 * (key @ key[:, new].swapaxes(1, 2))
    gaussian = xp.exp(-xp.clip(distance, 0, None) / (2 * float(key.shape[-1]) ** 0.5))
    return gaussian if similarity == "kernel" else _cosine(xp, value, new) * gaussian


def _cosine(xp: Any, vectors: Any, new: Any) -> Any:
    norm = xp.sqrt(xp.square(vectors).sum(-1))[..., None]
    unit = vectors / xp.where(norm > 0, norm, 1.0)  # a zero vector has cosine 0 with everything
    return unit @ unit[:, new].swapaxes(1, 2)


def self_similarity(xp: Any, key: Any, value: Any, similarity: Similarity) -> Any:
    """Mean similarity of each token to itself, [n]: 1, but for heads in which it is a zero vector and a cosine 0."""
    compared = value if similarity in ("dual_weight", "value") else key
    ones = xp.ones_like(compared[..., 0])
    if similarity != "kernel":
        ones = xp.where(xp.square(compared).sum(-1) > 0, ones, 0.0)
    return ones.mean(0)


def minmax(xp: Any, x: Any, within: Any) -> Any:
    """`x` mapped so that `within` spans [0, 1]; all ones where `within` has one value or none."""
    if len(within) == 0 or within.max() == within.min():
        return xp.ones_like(x)
    return (x - within.min()) / (within.max() - within.min())
