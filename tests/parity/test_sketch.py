"""Distances of sketches are those of the rows, and the projections are the same everywhere."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from iwp_export.parity.sketch import Rows, _signs, distances, first_not_finite, sketched

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("width", [1, 3, 64, 4096])
def test_distances_are_those_of_the_rows(width: int) -> None:
    theirs = RNG.standard_normal((400, width)) * RNG.uniform(0.1, 10, (400, 1))
    ours = theirs + 0.01 * RNG.standard_normal((400, width))
    apart = np.linalg.norm(ours - theirs, axis=1)
    found = distances(sketched(ours), sketched(theirs))
    factor = found.absolute / apart
    assert 0.97 < np.sqrt(np.mean(np.square(factor))) < 1.05
    assert np.mean((factor > 0.4) & (factor < 1.6)) > 0.97
    norms = np.linalg.norm(theirs, axis=1)
    base = np.maximum(norms, np.median(norms))
    np.testing.assert_allclose(found.relative, found.absolute / base, rtol=1e-3)
    angle = np.square(ours - theirs).sum() / np.square(theirs).sum() / 2  # 1 - cosine, of almost parallel vectors
    assert 1 - found.cosine == pytest.approx(angle, rel=0.1)
    same = distances(sketched(theirs), sketched(theirs))
    assert same.absolute.max() == same.relative.max() == 0 and same.cosine == 1


def test_rows_of_nothing() -> None:
    nothing, one = sketched(np.zeros((2, 5))), sketched(np.array([[0.0] * 5, [1.0] * 5]))
    assert distances(nothing, nothing).relative.tolist() == [0, 0]
    assert distances(nothing, nothing).cosine == 1
    assert distances(one, nothing).relative.tolist() == [0, np.inf]
    assert distances(nothing, one).cosine == 0
    many = RNG.standard_normal((500, 64))
    assert distances(sketched(-many), sketched(many)).cosine == pytest.approx(-1, abs=0.1)
    assert len(distances(sketched(np.zeros((0, 5))), sketched(np.zeros((0, 5)))).relative) == 0


def test_other_order_of_a_row_shows() -> None:
    row = RNG.standard_normal((1, 64))
    assert distances(sketched(row[:, ::-1]), sketched(row)).relative[0] > 0.3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_found(bad: float) -> None:
    rows = np.ones((4, 10), np.float32)
    assert first_not_finite(sketched(rows)) is None
    rows[2, 7] = bad
    assert first_not_finite(sketched(rows)) == 2
    assert first_not_finite(Rows(sketched(rows).sketch, np.ones(4, np.float32))) == 2


def test_large_numbers_do_not_overflow() -> None:
    assert first_not_finite(sketched(np.full((1, 4096), 3e38, np.float32))) == 0  # its length is no float32
    assert first_not_finite(sketched(np.full((1, 4096), 1e36, np.float32))) is None


def test_the_projections_never_change() -> None:
    """Recordings depend on them."""
    signs = np.sign(_signs(100)).astype(np.int8)
    assert hashlib.sha256(signs.tobytes()).hexdigest()[:16] == "b3f40bd6d1036c44"
    assert abs(signs.mean()) < 0.1
