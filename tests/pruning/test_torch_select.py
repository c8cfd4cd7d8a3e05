"""The torch selection agrees with the oracle index for index, and so does the ONNX function."""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iwp_export.pruning.reference import COVERAGE_FLOOR, select_by_importance, selection_gap
from iwp_export.pruning.settings import PruningSettings, choices
from iwp_export.pruning.torch_select import kept_index
from iwp_export.pruning.torch_select import select_by_importance as select_in_torch
from tests.pruning.cases import Case, op_model, random_case
from tests.pruning.test_onnx_function import VARIANTS

ROUNDING = 1e-5
SHAPES = {"kv_heads": 2, "size": 8}


@functools.cache
def session(options: PruningSettings) -> onnxruntime.InferenceSession:
    model = op_model(random_case(0, 4, **SHAPES), options)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def in_torch(case: Case, num_keep: int, options: PruningSettings) -> np.ndarray:
    feeds = {name: torch.from_numpy(array) for name, array in case.feeds(num_keep).items()}
    count = int(feeds.pop("num_kept")[0])
    return kept_index(**feeds, num_kept=count, settings=options)[0].numpy()


OPTIONS = [
    PruningSettings(),
    *(PruningSettings(chunk=1, growth=3, penalty=3.0, **v) for v in VARIANTS),
    *(PruningSettings(chunk=1, growth=1, **v) for v in VARIANTS),  # the ONNX function then computes all pairs first
    *(PruningSettings(select="coverage").with_changes(similarity=name) for name in choices("similarity")),
]


@given(
    st.integers(0, 2**31),
    st.integers(0, 60),
    st.integers(1, 9),
    st.floats(0, 1),
    st.sampled_from([0, 0, 2, 5]),
    st.sampled_from([None, None, 1, 4]),
    st.sampled_from(OPTIONS),
)
def test_all_implementations_agree(
    seed: int, n: int, text: int, share: float, clusters: int, levels: int | None, options: PruningSettings
) -> None:
    """With `levels`, importance takes that many values: ties, or all equal."""
    case = random_case(seed, n, text=text, clusters=clusters, **SHAPES)
    if levels is not None:
        case.importance = np.where(case.is_visual, np.arange(n + text) % levels, case.importance).astype(np.float32)
    num_keep = round(share * n)
    feeds = case.feeds(num_keep)
    expected = case.kept(select_by_importance(*case.visual(), num_keep, **options.selection()))
    for kept in (in_torch(case, num_keep, options), session(options).run(None, feeds)[0][0]):
        if not np.array_equal(kept, expected):
            assert len(kept) == len(expected)
            assert set(np.flatnonzero(~case.is_visual)) <= set(kept)
            limit = 2 * COVERAGE_FLOOR if options.select == "coverage" else ROUNDING
            assert selection_gap(case.chosen(kept), *case.visual(), tolerance=limit, **options.selection()) < limit


def test_samples_of_a_batch_are_independent() -> None:
    cases = [random_case(seed, 20, text=6) for seed in range(3)]
    feeds = [{k: torch.from_numpy(v) for k, v in case.feeds(7).items()} for case in cases]
    joined = {k: torch.cat([f[k] for f in feeds]) for k in feeds[0] if k != "num_kept"}
    kept = kept_index(**joined, num_kept=13, settings=PruningSettings())
    assert kept.shape == (3, 13)
    for row, case in zip(kept.numpy(), cases, strict=True):
        assert np.array_equal(row, in_torch(case, 7, PruningSettings()))


@pytest.mark.parametrize("num_keep", [-1, 21])
def test_an_impossible_budget_is_refused(num_keep: int) -> None:
    case = random_case(0, 20)
    with pytest.raises(ValueError, match="num_kept"):
        in_torch(case, num_keep, PruningSettings())


def test_half_precision_is_scored_in_float32() -> None:
    case = random_case(9, 64)
    importance, *states = (torch.from_numpy(x) for x in case.visual())
    key, value = (x.half() for x in states)
    chosen = select_in_torch(importance, key, value, 20, PruningSettings()).numpy()
    expected = select_by_importance(importance.numpy(), key.float().numpy(), value.float().numpy(), 20)
    assert np.array_equal(chosen, expected)
