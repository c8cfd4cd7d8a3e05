"""What a view refuses to hold, and distributions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from iwp_export.view.view import SHARES, Series, Table, distribution, one_line


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Table(("a", "b"), (("x",),)), "2 columns has 1 cells"),
        (lambda: Series("a", (1.0, 2.0), (1.0,)), "2 points and a list of 1"),
        (lambda: Series("a", (1.0,), (math.nan,)), "not finite"),
        (lambda: Series("a", (1.0,), (1.0,), labels=("x", "y")), "1 points and a list of 2"),
    ],
)
def test_what_cannot_be_shown_is_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("count", [1, 7, 5000])
def test_a_distribution_goes_from_none_to_all_and_stays_small(count: int) -> None:
    values = [math.sin(step) for step in range(count)]
    found = distribution("a", values)
    assert found.y[0] == 0 and found.y[-1] == 1 and min(values) == found.x[0] <= found.x[-1] == max(values)
    assert len(found.x) == SHARES


def test_a_long_name_is_shortened_and_on_one_line() -> None:
    assert one_line("a\nb  c\x00", 9) == "a b c\ufffd"
    assert one_line("long words of a name", 9) == "long wor…"
