"""Algorithm 1 as text of the ONNX function."""

from __future__ import annotations

from iwp_export.pruning.onnx_similarity import COLUMNS, pairs, reused
from iwp_export.pruning.reference import PENALTY_FLOOR
from iwp_export.pruning.settings import PruningSettings

SMALL_ROUND = 16
"""Rounds that never grow beyond this many tokens are so many that all pairs are cheaper than their columns."""


def mmr(settings: PruningSettings) -> str:
    """From `importance` to `left_end`, 0 at the tokens that the rounds took."""
    if settings.growth == 1 and settings.chunk <= SMALL_ROUND:
        prepared = reused(settings.similarity) + pairs(settings.similarity, squared=True)
        return _NORMALISE + prepared + _rounds(settings, "duplicate_raw = Gather <axis = 1> (pairs_mean, new)")
    return _NORMALISE + reused(settings.similarity) + _rounds(settings, COLUMNS[settings.similarity] + _MEAN_SQUARE)


_MEAN_SQUARE = """
    likeness_square = Mul (likeness, likeness)
    duplicate_raw = ReduceMean <keepdims = 0> (likeness_square, axis_0)
"""

_NORMALISE = f"""
  floor = Constant <value = float {{{PENALTY_FLOOR}}}> ()
  first_chunk = Constant <value_int: int = @chunk> ()
  growth_factor = Constant <value_int: int = @growth> ()
  weight = Constant <value_float: float = @penalty> ()
  scores = Squeeze (importance, axis_0)
  scores_low = Where (visual, scores, highest)
  scores_high = Where (visual, scores, lowest)
  least = ReduceMin <keepdims = 0> (scores_low)
  most = ReduceMax <keepdims = 0> (scores_high)
  spread = Sub (most, least)
  is_flat = LessOrEqual (spread, zero_f)
  divisor = Where (is_flat, one_f, spread)
  above = Sub (scores, least)
  scaled = Div (above, divisor)
  priority = Where (is_flat, one_f, scaled)
"""
"""`priority` [S], in [0, 1] at visual tokens. At text it may be anything: text is never a candidate."""


_MINMAX = """
    alive_column = Unsqueeze (is_left, axis_last)
    duplicate_low = Where (alive_column, duplicate_raw, highest)
    duplicate_high = Where (alive_column, duplicate_raw, lowest)
    duplicate_least = ReduceMin <keepdims = 0> (duplicate_low)
    duplicate_most = ReduceMax <keepdims = 0> (duplicate_high)
    duplicate_spread = Sub (duplicate_most, duplicate_least)
    duplicate_flat = LessOrEqual (duplicate_spread, zero_f)
    duplicate_divisor = Where (duplicate_flat, one_f, duplicate_spread)
    duplicate_above = Sub (duplicate_raw, duplicate_least)
    duplicate_scaled = Div (duplicate_above, duplicate_divisor)
    duplicate = Where (duplicate_flat, one_f, duplicate_scaled)
"""


def _rounds(settings: PruningSettings, duplication: str) -> str:
    """Algorithm 1 as a Loop; it does not run when nothing or everything is kept (a decode step costs next to nothing).

    TopK breaks ties by the lower index, as the standard says.
    """
    normalise = _MINMAX if settings.duplication_norm == "minmax" else "    duplicate = Identity (duplicate_raw)"
    return f"""
  no_count = Identity (zero)
  priority_end, left_end, count_end, chunk_end = Loop (num_tokens, begins, priority, visual_f, no_count, first_chunk)
  <body = round (int64 index, bool go, float[S] p, float[S] left, int64 count, int64 chunk_now)
  => (bool go_out, float[S] p_out, float[S] left_out, int64 count_out, int64 chunk_out) {{
    remaining = Sub (budget, count)
    taken = Min (chunk_now, remaining)
    taken_1 = Unsqueeze (taken, axis_0)
    was_left = Greater (left, zero_f)
    candidates = Where (was_left, p, lowest)
    best, new = TopK <axis = 0> (candidates, taken_1)
    none_left = ConstantOfShape <value = float[1] {{0.0}}> (taken_1)
    left_out = ScatterElements <axis = 0> (left, new, none_left)
    is_left = Greater (left_out, zero_f)
    {duplication}
    {normalise}
    worst = ReduceMax <keepdims = 0> (duplicate, axis_last)
    loss = Mul (worst, weight)
    share = Sub (one_f, loss)
    factor = Max (share, floor)
    p_out = Mul (p, factor)
    count_out = Add (count, taken)
    chunk_out = Mul (chunk_now, growth_factor)
    go_out = Less (count_out, budget)
  }}>
"""
