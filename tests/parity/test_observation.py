"""Distances of sketches are those of the rows, and the projections are the same everywhere."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from iwp_export.parity.check import compare, distances
from iwp_export.parity.figures import StageFigures
from iwp_export.parity.observation import _signs, sketch

RNG = np.random.default_rng(0)


def flaw(rows: Any) -> str:
    stage = StageFigures("features")
    compare(stage, sketch(rows), sketch(np.ones_like(rows)), "here", "row {}".format)
    return stage.flaw


@pytest.mark.parametrize("width", [1, 3, 64, 4096])
def test_distances_are_those_of_the_rows(width: int) -> None:
    theirs = RNG.standard_normal((400, width)) * RNG.uniform(0.1, 10, (400, 1))
    ours = theirs + 0.01 * RNG.standard_normal((400, width))
    apart = np.linalg.norm(ours - theirs, axis=1)
    absolute, relative, cosine = distances(sketch(ours), sketch(theirs))
    factor = absolute / apart
    assert 0.97 < np.sqrt(np.mean(np.square(factor))) < 1.05
    assert np.mean((factor > 0.4) & (factor < 1.6)) > 0.97
    norms = np.linalg.norm(theirs, axis=1)
    base = np.maximum(norms, np.median(norms))
    np.testing.assert_allclose(relative, absolute / base, rtol=1e-3)
    angle = np.square(ours - theirs).sum() / np.square(theirs).sum() / 2  # 1 - cosine, of almost parallel vectors
    assert 1 - cosine == pytest.approx(angle, rel=0.1)
    absolute, relative, cosine = distances(sketch(theirs), sketch(theirs))
    assert absolute.max() == relative.max() == 0 and cosine == 1


def test_rows_of_nothing() -> None:
    nothing, one = sketch(np.zeros((2, 5))), sketch(np.array([[0.0] * 5, [1.0] * 5]))
    assert distances(nothing, nothing)[1].tolist() == [0, 0]
    assert distances(nothing, nothing)[2] == 1
    assert distances(one, nothing)[1].tolist() == [0, np.inf]
    assert distances(nothing, one)[2] == 0
    many = RNG.standard_normal((500, 64))
    assert distances(sketch(-many), sketch(many))[2] == pytest.approx(-1, abs=0.1)
    assert len(distances(sketch(np.zeros((0, 5))), sketch(np.zeros((0, 5))))[1]) == 0


def test_other_order_of_a_row_shows() -> None:
    row = RNG.standard_normal((1, 64))
    assert distances(sketch(row[:, ::-1]), sketch(row))[1][0] > 0.3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])  # a length that is no float32, at last
def test_numbers_that_are_not_finite_are_found(bad: float) -> None:
    rows = np.full((4, 4096), 1e30, np.float32)
    assert flaw(rows) == ""
    rows[2, 7:9] = bad
    assert flaw(rows) == "here, row 2: a number is not finite"


def test_a_sketch_has_a_row_for_each_of_the_last_dimension() -> None:
    tensor = RNG.standard_normal((2, 2, 7))
    assert sketch(tensor).shape == (4, 9) and sketch(tensor[:0]).shape == (0, 9)
    np.testing.assert_array_equal(sketch(tensor)[:, 0], np.linalg.norm(tensor.reshape(4, 7), axis=1).astype(np.float32))


def test_the_projections_never_change() -> None:
    """Recordings depend on them."""
    signs = np.sign(_signs(100)).astype(np.int8)
    assert hashlib.sha256(signs.tobytes()).hexdigest()[:16] == "b3f40bd6d1036c44"
    assert abs(signs.mean()) < 0.1
