"""The op `iwp::SelectTokens` as an ONNX function, of standard operators, for runtimes without the plugin.

It is text, joined from parts by the settings; `reference` has the same steps in numpy.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx.parser

from iwp_export.pruning.reference import COVERAGE_FLOOR, PENALTY_FLOOR
from iwp_export.pruning.settings import PruningSettings, Similarity

DOMAIN = "iwp"
OP_TYPE = "SelectTokens"
VERSION = 3
INPUTS = ("importance", "key", "value", "is_visual", "num_kept")


def node_attributes(settings: PruningSettings) -> dict[str, Any]:
    """Attributes of the op's node: the settings of the selection, and what TensorRT needs to find and shape a plugin.

    `plugin_namespace` makes TensorRT 10.15 and later prefer the plugin to this function;
    `tensorrt_plugin_shape_input_indices` says that `num_kept` is a shape tensor, since it is the output's length.
    """
    return {
        **settings.selection(),
        "plugin_namespace": DOMAIN,
        "plugin_version": str(VERSION),
        "tensorrt_plugin_shape_input_indices": [INPUTS.index("num_kept")],
    }


def select_tokens_function(settings: PruningSettings, opset: int) -> onnx.FunctionProto:
    """The function's body, specialised to the settings' variants; chunk, growth and penalty stay attributes.

    Args:
        settings: which selection, similarity and normalisation of duplication the body computes.
        opset: version of the standard operators, 18 or later.
    """
    attributes = ", ".join(node_attributes(settings))
    choose = _coverage if settings.select == "coverage" else _mmr
    body = "\n".join([_PREPARE, choose(settings), _COLLECT])
    text = (
        f'<opset_import: ["" : {opset}], domain: "{DOMAIN}">\n'
        f"{OP_TYPE} <{attributes}> ({', '.join(INPUTS)}) => (kept_index) {{\n{body}\n}}"
    )
    return onnx.parser.parse_function(text)


_PREPARE = """
  zero = Constant <value = int64 {0}> ()
  zero_f = Constant <value = float {0.0}> ()
  one_f = Constant <value = float {1.0}> ()
  two_f = Constant <value = float {2.0}> ()
  lowest = Constant <value = float {-1e30}> ()
  highest = Constant <value = float {1e30}> ()
  axis_0 = Constant <value = int64[1] {0}> ()
  axis_1 = Constant <value = int64[1] {1}> ()
  axis_last = Constant <value = int64[1] {-1}> ()
  key_0 = Squeeze (key, axis_0)
  value_0 = Squeeze (value, axis_0)
  visual = Squeeze (is_visual, axis_0)
  k = Cast <to = 1> (key_0)
  v = Cast <to = 1> (value_0)
  visual_f = Cast <to = 1> (visual)
  visual_i = Cast <to = 7> (visual)
  num_visual = ReduceSum <keepdims = 0> (visual_i)
  num_tokens = Size (visual)
  num_text = Sub (num_tokens, num_visual)
  total = Squeeze (num_kept, axis_0)
  budget = Sub (total, num_text)
  size = Shape <start = 2, end = 3> (k)
  size_f = Cast <to = 1> (size)
  root = Sqrt (size_f)
  twice_root = Mul (root, two_f)
  some = Less (zero, budget)
  not_all = Less (budget, num_visual)
  begins = And (some, not_all)
"""
"""What both selections need. `begins`: there is a choice to make; in a decode step there is none."""

SMALL_ROUND = 16
"""Rounds that never grow beyond this many tokens are so many that all pairs are cheaper than their columns."""


def _mmr(settings: PruningSettings) -> str:
    """From `importance` to `left_end`, 0 at the tokens that the rounds took: Algorithm 1 as a Loop.

    It does not run when nothing or everything is kept: a decode step costs next to nothing. TopK breaks ties by the
    lower index, as the standard says. `priority` may be anything at text, which is never a candidate.
    """
    prepared = _reused(settings.similarity)
    if settings.growth == 1 and settings.chunk <= SMALL_ROUND:
        prepared += _pairs(settings.similarity, squared=True)
        duplication = "duplicate_raw = Gather <axis = 1> (pairs_mean, new)"
    else:
        duplication = f"""{_likeness(settings.similarity, "new")}
    likeness_square = Mul (likeness, likeness)
    duplicate_raw = ReduceMean <keepdims = 0> (likeness_square, axis_0)"""
    normalise = "duplicate = Identity (duplicate_raw)"
    if settings.duplication_norm == "minmax":
        normalise = "alive = Unsqueeze (is_left, axis_last)" + _minmax("duplicate_raw", "alive", "duplicate")
    return f"""
  floor = Constant <value = float {{{PENALTY_FLOOR}}}> ()
  first_chunk = Constant <value_int: int = @chunk> ()
  growth_factor = Constant <value_int: int = @growth> ()
  weight = Constant <value_float: float = @penalty> ()
  scores = Squeeze (importance, axis_0)
{_minmax("scores", "visual", "priority")}{prepared}
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


def _minmax(source: str, where: str, result: str) -> str:
    """`result`: `source` mapped so that its values at `where` span [0, 1]; all ones where those are equal."""
    return f"""
  {result}_low = Where ({where}, {source}, highest)
  {result}_high = Where ({where}, {source}, lowest)
  {result}_least = ReduceMin <keepdims = 0> ({result}_low)
  {result}_most = ReduceMax <keepdims = 0> ({result}_high)
  {result}_spread = Sub ({result}_most, {result}_least)
  {result}_flat = LessOrEqual ({result}_spread, zero_f)
  {result}_divisor = Where ({result}_flat, one_f, {result}_spread)
  {result}_above = Sub ({source}, {result}_least)
  {result}_scaled = Div ({result}_above, {result}_divisor)
  {result} = Where ({result}_flat, one_f, {result}_scaled)
"""


PANEL = 32
"""Steps after which the matrix of pairs is brought up to date: one large product for many small ones, which read all
earlier rows and which threads would share for less than it takes to wake them."""


def _coverage(settings: PruningSettings) -> str:
    """From keys and values to `left_end`, 0 at the tokens that were chosen: a step of pivoted Cholesky for each.

    A token that is chosen, and text, has `spent` left. Of an explained token `Round` leaves 0, of a spent
    one what it had. A step with nothing left to explain appends a row of zeros to `rows`, a panel of the transposed
    factor; what the panels before it explain is subtracted from `similarity` already.
    """
    own = "  own = Identity (visual_row)"
    if settings.similarity != "kernel":
        own = """  unit_some_f = Cast <to = 1> (unit_some)
  own_heads = ReduceMean <keepdims = 0> (unit_some_f, axis_0)
  own_all = Transpose <perm = [1, 0]> (own_heads)
  own = Mul (own_all, visual_row)"""
    return f"""
  floor_left = Constant <value = float {{{COVERAGE_FLOOR}}}> ()
  spent = Constant <value = float[1, 1] {{-1e30}}> ()
  spent_limit = Constant <value = float {{-1.0}}> ()
  visual_row = Unsqueeze (visual_f, axis_0)
  is_text = Less (visual_row, one_f)
  zero_row = Mul (visual_row, zero_f)
{_reused(settings.similarity)}{own}
  left_start = Where (is_text, spent, own)
{_pairs(settings.similarity, squared=False)}
  panel = Constant <value = int64 {{{PANEL}}}> ()
  panel_less = Constant <value = int64 {{{PANEL - 1}}}> ()
  budget_up = Add (budget, panel_less)
  num_panels = Div (budget_up, panel)
  no_steps = Identity (zero)
  left_last, pairs_last, steps_last = Loop (num_panels, begins, left_start, pairs_mean, no_steps)
  <body = panels (int64 index, bool go, float[1, S] left, float[S, S] similarity, int64 steps)
  => (bool go_out, float[1, S] left_out, float[S, S] similarity_out, int64 steps_out) {{
    steps_to_go = Sub (budget, steps)
    steps_now = Min (panel, steps_to_go)
    left_out, rows_out = Loop (steps_now, go, left, zero_row)
    <body = step (int64 step_index, bool step_go, float[1, S] step_left, float[T, S] rows)
    => (bool step_go_out, float[1, S] step_left_out, float[U, S] step_rows_out) {{
      explained = Less (step_left, floor_left)
      nothing = Round (step_left)
      unexplained = Where (explained, nothing, step_left)
      new = ArgMax <axis = 1> (unexplained)
      new_flat = Squeeze (new, axis_0)
      similar = Gather <axis = 0> (similarity, new_flat)
      rows_new = Gather <axis = 1> (rows, new_flat)
      rows_new_t = Transpose <perm = [1, 0]> (rows_new)
      known = MatMul (rows_new_t, rows)
      rest = Sub (similar, known)
      amount = Gather <axis = 1> (unexplained, new_flat)
      is_some = Sign (amount)
      safe = Max (amount, floor_left)
      root_of = Sqrt (safe)
      scale = Div (is_some, root_of)
      row = Mul (rest, scale)
      step_rows_out = Concat <axis = 0> (rows, row)
      row_square = Mul (row, row)
      remaining = Sub (step_left, row_square)
      step_left_out = ScatterElements <axis = 1> (remaining, new, spent)
      step_go_out = Identity (step_go)
    }}>
    rows_t = Transpose <perm = [1, 0]> (rows_out)
    known_pairs = MatMul (rows_t, rows_out)
    similarity_out = Sub (similarity, known_pairs)
    steps_out = Add (steps, steps_now)
    go_out = Identity (go)
  }}>
  left_flat = Squeeze (left_last, axis_0)
  left_is = Greater (left_flat, spent_limit)
  left_end = Cast <to = 1> (left_is)
"""


def _reused(similarity: Similarity) -> str:
    """What all likeness is made of: `unit`, keys or values over their norms, and `key_square`.

    A zero vector stays zero, so that its cosine with everything is 0.
    """
    text = ""
    if similarity != "kernel":
        vector = "k" if similarity == "key" else "v"
        text += f"""
  unit_square = ReduceSumSquare <keepdims = 1> ({vector}, axis_last)
  unit_norm = Sqrt (unit_square)
  unit_some = Greater (unit_norm, zero_f)
  unit_safe = Where (unit_some, unit_norm, one_f)
  unit = Div ({vector}, unit_safe)
"""
    if similarity in ("dual_weight", "kernel"):
        text += "\n  key_square = ReduceSumSquare <keepdims = 1> (k, axis_last)\n"
    return text


def _likeness(similarity: Similarity, index: str) -> str:
    """`likeness` of all tokens and those of the index `new` [N], [Hkv, S, N]; or of all pairs in the one `head`."""
    axis, swap, rows = (0, "[1, 0]", "_part") if index == "head" else (1, "[0, 2, 1]", "")

    def part(name: str) -> str:
        return f"""
    {name}_part = Gather <axis = {axis}> ({name}, {index})
    {name}_part_t = Transpose <perm = {swap}> ({name}_part)"""

    cosine = f"""{part("unit")}
    cosine = MatMul (unit{rows}, unit_part_t)"""
    gaussian = f"""{part("k")}{part("key_square")}
    product = MatMul (k{rows}, k_part_t)
    twice = Mul (product, two_f)
    squares = Add (key_square{rows}, key_square_part_t)
    negative = Sub (twice, squares)
    capped = Min (negative, zero_f)
    exponent = Div (capped, twice_root)
    gaussian = Exp (exponent)"""
    if similarity == "dual_weight":
        return f"{cosine}{gaussian}\n    likeness = Mul (cosine, gaussian)"
    if similarity == "kernel":
        return f"{gaussian}\n    likeness = Identity (gaussian)"
    return f"{cosine}\n    likeness = Identity (cosine)"


def _pairs(similarity: Similarity, squared: bool) -> str:
    """`pairs_mean` [S, S]: the mean over heads of all pairs' similarity, or of its square, if `begins`.

    Head by head: one matrix of pairs fits into a processor's cache where those of all heads do not.
    """
    term = "term = Mul (likeness, likeness)" if squared else "term = Identity (likeness)"
    return f"""
  tokens_1 = Shape <start = 1, end = 2> (k)
  heads_1 = Shape <start = 0, end = 1> (k)
  heads = Squeeze (heads_1, axis_0)
  heads_f = Cast <to = 1> (heads)
  square_shape = Concat <axis = 0> (tokens_1, tokens_1)
  no_pairs = ConstantOfShape <value = float[1] {{0.0}}> (square_shape)
  pairs_sum = Loop (heads, begins, no_pairs)
  <body = add_head (int64 head, bool go, float[S, S] pairs) => (bool go_out, float[S, S] pairs_out) {{
    {_likeness(similarity, "head")}
    {term}
    pairs_out = Add (pairs, term)
    go_out = Identity (go)
  }}>
  pairs_mean = Div (pairs_sum, heads_f)
"""


_COLLECT = """
  still_left = Greater (left_end, zero_f)
  dropped = And (still_left, begins)
  none_kept = LessOrEqual (budget, zero)
  visual_dropped = And (visual, none_kept)
  gone = Or (dropped, visual_dropped)
  stays = Not (gone)
  stays_f = Cast <to = 1> (stays)
  flags, members = TopK <axis = 0> (stays_f, num_kept)
  members_sorted, order = TopK <axis = 0, largest = 0> (members, num_kept)
  kept_index = Unsqueeze (members_sorted, axis_0)
"""
"""From `left_end` [S], above 0 at a visual token that no round took, to the indices that stay."""
