"""The op `iwp::SelectTokens` as an ONNX function: a node's attributes, and the body's text for each setting.

Similarity of tokens comes as columns for the tokens of a round, or as the matrix of all pairs.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx.parser

from iwp_export.pruning.reference import COVERAGE_FLOOR, PENALTY_FLOOR
from iwp_export.pruning.settings import PruningSettings, Similarity


def reused(similarity: Similarity) -> str:
    """What all columns use of keys `k` and values `v`."""
    body = ""
    if similarity in ("dual_weight", "value"):
        body += unit("v")
    if similarity == "key":
        body += unit("k")
    if similarity in ("dual_weight", "kernel"):
        body += """
  key_square = ReduceSumSquare <keepdims = 1> (k, axis_last)
  key_square_t = Transpose <perm = [0, 2, 1]> (key_square)
"""
    return body


def unit(vector: str) -> str:
    """`unit`: `vector` over its norm; a zero vector stays zero, so that its cosine with everything is 0."""
    return f"""
  unit_square = ReduceSumSquare <keepdims = 1> ({vector}, axis_last)
  unit_norm = Sqrt (unit_square)
  unit_some = Greater (unit_norm, zero_f)
  unit_safe = Where (unit_some, unit_norm, one_f)
  unit = Div ({vector}, unit_safe)
"""


_COSINE = """
    unit_new = Gather <axis = 1> (unit, new)
    unit_new_t = Transpose <perm = [0, 2, 1]> (unit_new)
    cosine = MatMul (unit, unit_new_t)
"""

_GAUSSIAN = """
    key_new = Gather <axis = 1> (k, new)
    key_new_t = Transpose <perm = [0, 2, 1]> (key_new)
    square_new = Gather <axis = 2> (key_square_t, new)
    product = MatMul (k, key_new_t)
    twice = Mul (product, two_f)
    squares = Add (key_square, square_new)
    difference = Sub (squares, twice)
    distance = Max (difference, zero_f)
    exponent = Div (distance, twice_root)
    negated = Neg (exponent)
    gaussian = Exp (negated)
"""

COLUMNS = {
    "dual_weight": _COSINE + _GAUSSIAN + "    likeness = Mul (cosine, gaussian)",
    "value": _COSINE + "    likeness = Identity (cosine)",
    "key": _COSINE + "    likeness = Identity (cosine)",
    "kernel": _GAUSSIAN + "    likeness = Identity (gaussian)",
}
"""`likeness` [Hkv, S, N] of all tokens and those of `new` [N]."""

_HEAD_COSINE = """
    unit_head = Gather <axis = 0> (unit, head)
    unit_head_t = Transpose <perm = [1, 0]> (unit_head)
    cosine = MatMul (unit_head, unit_head_t)
"""

_HEAD_GAUSSIAN = """
    key_head = Gather <axis = 0> (k, head)
    key_head_t = Transpose <perm = [1, 0]> (key_head)
    square_head = Gather <axis = 0> (key_square, head)
    square_head_t = Transpose <perm = [1, 0]> (square_head)
    product = MatMul (key_head, key_head_t)
    twice = Mul (product, two_f)
    squares = Add (square_head, square_head_t)
    negative = Sub (twice, squares)
    capped = Min (negative, zero_f)
    exponent = Div (capped, twice_root)
    gaussian = Exp (exponent)
"""

_HEAD = {
    "dual_weight": _HEAD_COSINE + _HEAD_GAUSSIAN + "    likeness = Mul (cosine, gaussian)",
    "value": _HEAD_COSINE + "    likeness = Identity (cosine)",
    "key": _HEAD_COSINE + "    likeness = Identity (cosine)",
    "kernel": _HEAD_GAUSSIAN + "    likeness = Identity (gaussian)",
}


def pairs(similarity: Similarity, squared: bool) -> str:
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
    {_HEAD[similarity]}
    {term}
    pairs_out = Add (pairs, term)
    go_out = Identity (go)
  }}>
  pairs_mean = Div (pairs_sum, heads_f)
"""


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


PANEL = 32
"""Steps after which the matrix of pairs is brought up to date: one large product for many small ones, which read all
earlier rows and which threads would share for less than it takes to wake them."""


def coverage(settings: PruningSettings) -> str:
    """From keys and values to `left_end`, 0 at the tokens that were chosen: a step of pivoted Cholesky for each.

    A token that is chosen, and text, has `spent` left. Of an explained token `Round` leaves 0, of a spent
    one what it had. A step with nothing left to explain appends a row of zeros to `rows`, a panel of the transposed
    factor; what the panels before it explain is subtracted from `similarity` already.
    """
    with_cosine = settings.similarity != "kernel"
    own = "  own = Identity (visual_row)"
    if with_cosine:
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
{reused(settings.similarity)}{own}
  left_start = Where (is_text, spent, own)
{pairs(settings.similarity, squared=False)}
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
    choose = coverage if settings.select == "coverage" else mmr
    body = "\n".join([_PREPARE, choose(settings), _COLLECT])
    text = (
        f'<opset_import: ["" : {opset}], domain: "{DOMAIN}">\n'
        f"{OP_TYPE} <{attributes}> ({', '.join(INPUTS)}) => (kept_index) {{\n{body}\n}}"
    )
    return onnx.parser.parse_function(text)


def op_alone(settings: PruningSettings, kv_heads: int, size: int, element_type: int, opset: int) -> onnx.ModelProto:
    """A model of the op alone, with its function, for one sample.

    Args:
        settings: the selection's.
        kv_heads, size: number of key/value heads, and the length of each.
        element_type: of keys and values (TensorProto.DataType).
        opset: version of the standard operators.
    """
    types: dict[str, tuple[int, list[int | str]]] = {
        "importance": (onnx.TensorProto.FLOAT, [1, "S"]),
        "key": (element_type, [1, kv_heads, "S", size]),
        "value": (element_type, [1, kv_heads, "S", size]),
        "is_visual": (onnx.TensorProto.BOOL, [1, "S"]),
        "num_kept": (onnx.TensorProto.INT64, [1]),
    }
    inputs = [onnx.helper.make_tensor_value_info(name, *types[name]) for name in INPUTS]
    output = onnx.helper.make_tensor_value_info("kept_index", onnx.TensorProto.INT64, [1, "K"])
    node = onnx.helper.make_node(OP_TYPE, INPUTS, ["kept_index"], domain=DOMAIN, **node_attributes(settings))
    return onnx.helper.make_model(
        onnx.helper.make_graph([node], "select", inputs, [output]),
        functions=[select_tokens_function(settings, opset)],
        opset_imports=[onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )


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
