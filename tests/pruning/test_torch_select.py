"""The torch selection agrees with the oracle index for index, and so does the ONNX function."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iwp_export.pruning.reference import select_tokens, selection_gap
from iwp_export.pruning.settings import PruningSettings
from iwp_export.pruning.torch_select import kept_index
from iwp_export.pruning.torch_select import select_tokens as select_in_torch
from tests.pruning.cases import Case, op_model, random_case
from tests.pruning.test_onnx_function import VARIANTS

ROUNDING = 1e-5
SHAPES = {"heads": 4, "kv_heads": 2, "size": 8}
SESSION = onnxruntime.InferenceSession(
    op_model(random_case(0, 4, **SHAPES), PruningSettings()).SerializeToString(), providers=["CPUExecutionProvider"]
)


def in_torch(case: Case, num_keep: int, options: PruningSettings) -> np.ndarray:
    feeds = {name: torch.from_numpy(array) for name, array in case.feeds(num_keep).items()}
    count = int(feeds.pop("num_kept")[0])
    return kept_index(**feeds, num_kept=count, settings=options)[0].numpy()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 60), st.integers(1, 9), st.floats(0, 1), st.sampled_from([0, 0, 2, 5]))
def test_all_implementations_agree(seed: int, n: int, text: int, share: float, clusters: int) -> None:
    case = random_case(seed, n, text=text, clusters=clusters, **SHAPES)
    num_keep = round(share * n)
    expected = case.kept(select_tokens(*case.visual(), num_keep))
    for kept in (in_torch(case, num_keep, PruningSettings()), SESSION.run(None, case.feeds(num_keep))[0][0]):
        if not np.array_equal(kept, expected):
            assert len(kept) == len(expected)
            assert set(np.flatnonzero(~case.is_visual)) <= set(kept)
            assert selection_gap(case.chosen(kept), *case.visual()) < ROUNDING


@pytest.mark.parametrize("variant", VARIANTS[::2], ids=lambda v: "-".join(v.values()))
def test_variants(variant: dict) -> None:
    case = random_case(5, 50)
    options = PruningSettings(chunk=1, growth=3, penalty=3.0, **variant)
    query, key, rotated, value = (torch.from_numpy(x) for x in case.visual())
    chosen = select_in_torch(query, key, rotated, value, 17, options).numpy()
    expected = select_tokens(*case.visual(), 17, **options.selection())
    if not np.array_equal(chosen, expected):
        assert selection_gap(chosen, *case.visual(), **options.selection()) < ROUNDING


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
    with pytest.raises(ValueError, match="num_kept"):
        in_torch(random_case(0, 20), num_keep, PruningSettings())


def test_half_precision_is_scored_in_float32() -> None:
    case = random_case(9, 64)
    query, key, rotated, value = (torch.from_numpy(x).half() for x in case.visual())
    chosen = select_in_torch(query, key, rotated, value, 20, PruningSettings()).numpy()
    q, k, r, v = (x.float().numpy() for x in (query, key, rotated, value))
    assert np.array_equal(chosen, select_tokens(q, k, r, v, 20))
