"""Coverage, a greedy pivoted Cholesky of the mean similarity, as text of the ONNX function."""

from __future__ import annotations

from iwp_export.pruning.onnx_similarity import pairs, reused
from iwp_export.pruning.reference import COVERAGE_FLOOR
from iwp_export.pruning.settings import PruningSettings

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
