"""`iwp::SelectTokens` as an ONNX model-local function of standard ops: runs wherever ONNX runs, no library to ship.

Contract of the op (domain `iwp`, version 2), the same for every implementation:

    kept_index int64 [B, K] = SelectTokens(importance float32 [B, S], key [B, Hkv, S, d], value [B, Hkv, S, dv],
                                           is_visual bool [B, S], num_kept int64 [1])

K is `num_kept[0]`: how many of a sample's S tokens go on, text and visual together. Every text token is kept, and
the K - (number of text tokens) visual ones that Algorithm 1 chooses; indices are ascending. The op brings `importance`
to [0, 1] over a sample's visual tokens, all ones if it is the same for all; whatever it holds at text is ignored. `key`
is the one that duplication compares. All arithmetic is float32, ties go to the lower index. The samples of a batch are
independent and share K. The function below takes a batch of one and fails on more.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx.parser

from iwp_export.pruning.reference import PENALTY_FLOOR
from iwp_export.pruning.settings import PruningSettings

DOMAIN = "iwp"
OP_TYPE = "SelectTokens"
VERSION = 2
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
        settings: which similarity and normalisation of duplication the body computes.
        opset: version of the standard operators, 18 or later.
    """
    attributes = ", ".join(node_attributes(settings))
    body = "\n".join([_PREPARE, _NORMALISE, _reused(settings), _rounds(settings), _COLLECT])
    text = (
        f'<opset_import: ["" : {opset}], domain: "{DOMAIN}">\n'
        f"{OP_TYPE} <{attributes}> ({', '.join(INPUTS)}) => (kept_index) {{\n{body}\n}}"
    )
    return onnx.parser.parse_function(text)


_PREPARE = f"""
  zero = Constant <value = int64 {{0}}> ()
  zero_f = Constant <value = float {{0.0}}> ()
  one_f = Constant <value = float {{1.0}}> ()
  two_f = Constant <value = float {{2.0}}> ()
  lowest = Constant <value = float {{-1e30}}> ()
  highest = Constant <value = float {{1e30}}> ()
  floor = Constant <value = float {{{PENALTY_FLOOR}}}> ()
  axis_0 = Constant <value = int64[1] {{0}}> ()
  axis_1 = Constant <value = int64[1] {{1}}> ()
  axis_last = Constant <value = int64[1] {{-1}}> ()
  first_chunk = Constant <value_int: int = @chunk> ()
  growth_factor = Constant <value_int: int = @growth> ()
  weight = Constant <value_float: float = @penalty> ()
  scores = Squeeze (importance, axis_0)
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
"""

_NORMALISE = """
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


def _reused(settings: PruningSettings) -> str:
    """What all rounds use of keys and values."""
    body = ""
    if settings.similarity in ("dual_weight", "value"):
        body += _unit("v", "value_unit")
    if settings.similarity == "key":
        body += _unit("k", "key_unit")
    if settings.similarity in ("dual_weight", "kernel"):
        body += """
  key_square = ReduceSumSquare <keepdims = 1> (k, axis_last)
  key_square_t = Transpose <perm = [0, 2, 1]> (key_square)
"""
    return body


def _unit(vector: str, name: str) -> str:
    """`vector` over its norm; a zero vector stays zero, so that its cosine with everything is 0."""
    return f"""
  {name}_square = ReduceSumSquare <keepdims = 1> ({vector}, axis_last)
  {name}_norm = Sqrt ({name}_square)
  {name}_some = Greater ({name}_norm, zero_f)
  {name}_safe = Where ({name}_some, {name}_norm, one_f)
  {name} = Div ({vector}, {name}_safe)
"""


def _cosine(unit: str) -> str:
    return f"""
    unit_new = Gather <axis = 1> ({unit}, new)
    unit_new_t = Transpose <perm = [0, 2, 1]> (unit_new)
    cosine = MatMul ({unit}, unit_new_t)
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

_SIMILARITY = {
    "dual_weight": _cosine("value_unit") + _GAUSSIAN + "    likeness = Mul (cosine, gaussian)",
    "value": _cosine("value_unit") + "    likeness = Identity (cosine)",
    "key": _cosine("key_unit") + "    likeness = Identity (cosine)",
    "kernel": _GAUSSIAN + "    likeness = Identity (gaussian)",
}

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


def _rounds(settings: PruningSettings) -> str:
    """Algorithm 1 as a Loop; it does not run when nothing or everything is kept (a decode step costs next to nothing).

    TopK breaks ties by the lower index, as the standard says.
    """
    normalise = _MINMAX if settings.duplication_norm == "minmax" else "    duplicate = Identity (duplicate_raw)"
    return f"""
  some = Less (zero, budget)
  not_all = Less (budget, num_visual)
  begins = And (some, not_all)
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
    {_SIMILARITY[settings.similarity]}
    likeness_square = Mul (likeness, likeness)
    duplicate_raw = ReduceMean <keepdims = 0> (likeness_square, axis_0)
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
