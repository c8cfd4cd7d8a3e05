"""Similarity of tokens as text of the ONNX function: columns for the tokens of a round, or the matrix of all pairs."""

from __future__ import annotations

from iwp_export.pruning.settings import Similarity


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
