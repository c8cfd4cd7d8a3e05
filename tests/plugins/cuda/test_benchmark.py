"""The floor that measurements are held against, counted by hand for a small case."""

from __future__ import annotations

from dataclasses import replace

from iwp_export.engine.kernels import SelectionShape
from plugins.cuda.benchmark import roofline
from tests.plugins.cuda.cases import DEFAULTS


def test_roofline_counts_inputs_once_and_only_the_pairs_that_a_round_needs() -> None:
    shape = SelectionShape(batch=1, kv_heads=2, tokens=12, head_dim=8, num_kept=9, data_type="float16")
    least = roofline(shape, DEFAULTS, visual=10)
    # Keys and values, importance and is_visual of 4 bytes each, the output.
    assert least["bytes"] == 2 * 2 * 12 * 8 * 2 + 2 * 12 * 4 + 8 * 9
    # Seven visual tokens in rounds of 2, 4 and 1; after the last nothing is compared. A product is two operations.
    assert least["pair_operations"] == 2 * 2 * (2 * 8 + 4 * 4) * 2 * 8
    assert roofline(replace(shape, batch=3), DEFAULTS, visual=10) == {name: 3 * n for name, n in least.items()}
    covering = roofline(shape, replace(DEFAULTS, select="coverage"), visual=10)
    # Six of the seven have a column, of 9, 8, ... 4 other tokens; the t-th takes t products off each of them.
    assert covering["pair_operations"] == 2 * 2 * 39 * 2 * 8
    products = 1 * 8 + 2 * 7 + 3 * 6 + 4 * 5 + 5 * 4
    assert covering["operations"] - covering["pair_operations"] == 2 * products + 2 * 2 * (2 * 8) * 10
    one_factor = roofline(shape, replace(DEFAULTS, similarity="key"), visual=10)
    assert one_factor["operations"] == least["operations"] / 2
