"""Every score, by its formula: in numpy, in torch, and traced into ONNX."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.export import Dim

from iwp_export.pruning.importance import LEAST_REST, VARIANTS, WITHOUT_QUERY, token_importance
from iwp_export.pruning.settings import CONTROLS, PruningSettings
from tests.pruning.cases import random_states

Options = dict[str, Any]
SCORES: list[Options] = [
    *({"importance": name, "heads": heads} for name, heads in itertools.product(VARIANTS, ("softmax", "raw"))),
    *(
        {"importance": name, "query_pool": pool, "head_pool": head_pool}
        for name in VARIANTS
        for pool, head_pool in (("mean", "max"), ("max", "mean"))
        if name not in CONTROLS[1:]
    ),
]
BY_OPTIONS = pytest.mark.parametrize("options", SCORES, ids=lambda options: "-".join(options.values()))
TOLERANCE: dict[str, Any] = {"rtol": 2e-4, "atol": 1e-7}
"""Of float32 exponentials of logits of some tens."""
HEADS, KV_HEADS, SIZE = 4, 2, 8


@dataclass
class States:
    """A call's states: query [H, Q, d], key and value [Hkv, S, d], is_visual [S]."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    is_visual: np.ndarray

    def batch(self) -> tuple[np.ndarray, ...]:
        feature_index = np.where(self.is_visual, np.cumsum(self.is_visual) - 1, -1)
        return self.query[None], self.key[None], self.value[None], feature_index[None]

    def in_numpy(self, **options: Any) -> np.ndarray:
        return token_importance(np, *self.batch(), **options)[0]

    def in_torch(self, **options: Any) -> np.ndarray:
        return token_importance(torch, *map(torch.from_numpy, self.batch()), **options)[0].numpy()


def random_call(seed: int, visual: int, text: int, queries: int, scale: float = 1.0) -> States:
    rng = np.random.default_rng(seed)
    tokens = visual + text
    is_visual = rng.permutation(tokens) < visual
    query = scale * random_states(rng, HEADS, queries, SIZE)
    key, value = (random_states(rng, KV_HEADS, tokens, SIZE) for _ in range(2))
    return States(query, key, value, is_visual)


calls = st.builds(
    random_call, st.integers(0, 2**31), st.integers(1, 40), st.integers(0, 9), st.integers(1, 7), st.floats(0.1, 5)
)


def by_the_formula(states: States, **options: Any) -> np.ndarray:
    """Scores of the visual tokens, head by head, query by query and token by token in float64."""
    chosen = PruningSettings(**options)
    query = states.query.astype(np.float64)
    query = query.mean(1, keepdims=True) if chosen.query_pool == "before" else query
    all_keys, all_values = (x.astype(np.float64) for x in (states.key, states.value))
    pools: dict[str, Any] = {"before": np.mean, "mean": np.mean, "max": np.max}
    rows = []
    for h in range(HEADS):
        keys, values = all_keys[h // (HEADS // KV_HEADS)], all_values[h // (HEADS // KV_HEADS)]
        each = [by_one_query(q, keys, values, states.is_visual, chosen) for q in query[h]]
        rows.append(pools[chosen.query_pool](each, axis=0))
    return pools[chosen.head_pool](rows, axis=0)


def by_one_query(
    query: np.ndarray, keys: np.ndarray, values: np.ndarray, visual: np.ndarray, chosen: PruningSettings
) -> np.ndarray:
    k, v, root = keys[visual], values[visual], np.sqrt(SIZE)
    logits = np.array([(x @ x / 2 if chosen.importance == "update" else query @ x) / root for x in k])
    kernel = np.exp(logits) / (np.exp(logits).sum() if chosen.heads == "softmax" else 1)
    norms = np.array([np.linalg.norm(x) for x in v])
    shares = np.exp(logits) / np.exp(logits).sum()
    rest = np.maximum(1 - shares, LEAST_REST)
    numbers = range(1, len(k) + 1)
    scores = {
        "kernel_value": lambda: kernel * norms,
        "kernel": lambda: kernel,
        "value": lambda: norms,
        "key": lambda: np.array([np.linalg.norm(x) for x in k]),
        "update": lambda: kernel * norms,
        "value_centred": lambda: np.array([np.linalg.norm(x - v.mean(0)) for x in v]),
        "leave_one_out": lambda: shares / rest * np.array([np.linalg.norm(x - shares @ v) for x in v]),
        "last_attention": lambda: np.exp(logits) / np.exp(keys @ query / root).sum(),
        "random": lambda: np.array([hashed(i) for i in numbers], float),
        "grid": lambda: np.array([i * 10368889 % 2**24 for i in numbers], float),
    }
    return scores[chosen.importance]()


def hashed(number: int) -> int:
    for multiplier, offset in ((48271, 11), (69621, 7), (16807, 101)):
        number = (number * number + multiplier * number + offset) % (2**24 - 3)
    return number


@BY_OPTIONS
@given(states=calls)
def test_numpy_and_torch_compute_the_formula(options: Options, states: States) -> None:
    expected = by_the_formula(states, **options)
    for found in (states.in_numpy(**options), states.in_torch(**options)):
        assert found.dtype == np.float32 and found.shape == states.is_visual.shape
        scores = found[states.is_visual]
        if options.get("heads") == "raw" and expected.max() > 0:  # it subtracts one maximum, which is one factor
            scores = scores * (expected.max() / scores.max())
        loose = {"leave_one_out": 1e-3, "value_centred": 1e-5}.get(options["importance"], 0)
        np.testing.assert_allclose(scores, expected, rtol=2e-4, atol=1e-6 + loose * expected.max())


@pytest.mark.parametrize("options", [o for o in SCORES if o["importance"] != "last_attention"], ids=str)
def test_text_changes_nothing(options: Options) -> None:
    """It does change the share of attention that the last token has for an image."""
    states = random_call(1, 20, 7, 3)
    other = replace(states, key=states.key.copy(), value=states.value.copy())
    other.key[:, ~states.is_visual] *= 50
    other.value[:, ~states.is_visual] += 9
    for compute in ("in_numpy", "in_torch"):
        scores, again = (getattr(x, compute)(**options)[x.is_visual] for x in (states, other))
        np.testing.assert_array_equal(scores, again)


@BY_OPTIONS
@pytest.mark.parametrize("text", [1, 6])
def test_a_call_without_visual_tokens_is_finite(options: Options, text: int) -> None:
    states = random_call(0, 0, text, 1)
    with np.errstate(all="raise"):
        assert np.isfinite(states.in_numpy(**options)).all()
    assert np.isfinite(states.in_torch(**options)).all()


@BY_OPTIONS
def test_huge_logits_do_not_overflow(options: Options) -> None:
    states = random_call(0, 20, 5, 2, scale=1e3)
    states.key *= 30
    with np.errstate(over="raise", invalid="raise"):
        assert np.isfinite(states.in_numpy(**options)).all()
    assert np.isfinite(states.in_torch(**options)).all()


def test_a_query_that_plays_no_part_is_known() -> None:
    one, other = random_call(3, 20, 7, 3), random_call(3, 20, 7, 3)
    other.query[:] = -one.query
    for name in VARIANTS:
        same = np.array_equal(one.in_numpy(importance=name), other.in_numpy(importance=name))
        assert same == (name in WITHOUT_QUERY), name


def test_leave_one_out_is_the_change_of_the_output() -> None:
    """The output over the visual tokens, computed again without each of them."""
    states = random_call(5, 12, 4, 1)
    k, v = (x[0, states.is_visual].astype(np.float64) for x in (states.key, states.value))
    logits = k @ states.query[0, 0].astype(np.float64) / np.sqrt(SIZE)

    def output(left: np.ndarray) -> np.ndarray:
        weights = np.exp(logits[left])
        return weights @ v[left] / weights.sum()

    everything = np.arange(12)
    expected = [np.linalg.norm(output(everything) - output(np.delete(everything, i))) for i in range(12)]
    one_head = replace(states, query=states.query[:1], key=states.key[:1], value=states.value[:1])
    found = one_head.in_numpy(importance="leave_one_out")[states.is_visual]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("side", [12, 16, 24])
@pytest.mark.parametrize("keep", [0.05, 0.111, 0.222, 0.5])
def test_the_grid_is_spread_over_the_picture(side: int, keep: float) -> None:
    """Over rows, columns and quarters of a square picture no part gets much more than its share."""
    states = random_call(0, side * side, 3, 1)
    count = PruningSettings().num_keep(side * side, keep)
    kept = np.argsort(-states.in_numpy(importance="grid")[states.is_visual], kind="stable")[:count]
    rows, columns = kept // side, kept % side
    for part in (rows // (side // 2), columns // (side // 2)):
        share = np.bincount(part, minlength=2) / count
        assert abs(share[0] - 0.5) <= max(0.2, 1 / count)
    assert np.bincount(columns, minlength=side).max() <= np.ceil(2.5 * max(1, count / side))
    assert np.bincount(rows, minlength=side).max() <= np.ceil(2.5 * max(1, count / side))


def test_random_has_no_pattern() -> None:
    """Ranks are uncorrelated with the token's number, and neighbours' with each other; no two scores are equal."""
    states = random_call(0, 4096, 3, 1)
    scores = states.in_numpy(importance="random")[states.is_visual]
    assert len(set(scores.tolist())) > 4090
    ranks = np.argsort(np.argsort(scores))
    for lag in (1, 2, 8, 24, 64):
        assert abs(np.corrcoef(ranks[:-lag], ranks[lag:])[0, 1]) < 0.06
    assert abs(np.corrcoef(ranks, np.arange(4096))[0, 1]) < 0.06


def test_draws_of_random_are_independent() -> None:
    """The first is the one that there was before draws could be chosen."""
    states = random_call(0, 4096, 3, 1)
    draws = [states.in_numpy(importance="random", draw=draw)[states.is_visual] for draw in (0, 1, 2, 5, 1000)]
    assert np.array_equal(draws[0], states.in_numpy(importance="random")[states.is_visual])
    assert np.abs(np.corrcoef(draws) - np.eye(len(draws))).max() < 0.06


@given(calls, st.floats(-30, 30))
def test_softmax_ignores_a_constant_in_one_heads_logits(states: States, shift: float) -> None:
    """A key that is the same for all tokens adds q.k to every logit of a head."""
    query, key, shifted = states.query.copy(), states.key.copy(), states.key.copy()
    query[: HEADS // KV_HEADS, :, -1] = [[1], [0]]  # of the heads that share a key, only one sees the constant
    key[0, :, -1] = 0
    shifted[0, :, -1] = shift
    plain, moved = (replace(states, query=query, key=k).in_numpy() for k in (key, shifted))
    np.testing.assert_allclose(moved[states.is_visual], plain[states.is_visual], **TOLERANCE)


def test_samples_of_a_batch_are_independent() -> None:
    samples = [random_call(seed, 12, 4, 3) for seed in range(3)]
    arrays = [np.concatenate(parts) for parts in zip(*(sample.batch() for sample in samples), strict=True)]
    for options in SCORES:
        scores = token_importance(np, *arrays, **options)
        for row, sample in zip(scores, samples, strict=True):
            np.testing.assert_allclose(row, sample.in_numpy(**options), rtol=1e-5)


class Traced(torch.nn.Module):
    """Scores as the decoder traces them."""

    def __init__(self, scores: list[Options]) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, number: torch.Tensor) -> Any:
        states = query.float(), key.float(), value.float(), number
        return tuple(token_importance(torch, *states, **options) for options in self.scores)


@pytest.mark.parametrize(
    ("dtype", "scores"),
    [
        pytest.param(np.float16, SCORES[: 2 * len(VARIANTS) : 2] + SCORES[2 * len(VARIANTS) :: 6], id="each once"),
        pytest.param(np.float16, SCORES, id="float16", marks=pytest.mark.slow),
        pytest.param(np.float32, SCORES, id="float32", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("after", [True, False], ids=["queries pooled after", "queries pooled before"])
def test_traced_they_are_plain_operators_in_float32(after: bool, dtype: Any, scores: list[Options]) -> None:
    """Nor do they ask for a shape, but to pool over a number of queries that is known when they run."""
    scores = [options for options in scores if ("query_pool" in options) == after]

    def feeds(states: States) -> list[np.ndarray]:
        return [x if x.dtype == np.int64 else x.astype(dtype) for x in states.batch()]

    names = ("query", "key", "value", "number")
    tokens, queries = Dim("tokens", max=1 << 20), Dim("queries", max=1 << 20)
    example = tuple(torch.from_numpy(x) for x in feeds(random_call(0, 7, 4, 3)))
    program = torch.onnx.export(
        Traced(scores).eval(),
        example,
        input_names=names,
        dynamic_shapes={"query": {2: queries}, "key": {2: tokens}, "value": {2: tokens}, "number": {1: tokens}},
        opset_version=23,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    graph = program.model.graph
    assert {node.domain for node in graph} <= {"", "ai.onnx"}
    avoided = {"If", "Loop", "NonZero"} if after else {"If", "Loop", "NonZero", "Shape"}
    assert avoided.isdisjoint(node.op_type for node in graph)
    narrow = {v.dtype.name for node in graph if node.op_type != "Cast" for v in node.outputs if v.dtype is not None}
    assert "FLOAT16" not in narrow and "DOUBLE" not in narrow
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for visual, text, count in ((30, 9, 5), (1, 0, 1), (0, 1, 1), (2, 1, 1)):
        states = random_call(visual, visual, text, count)
        query, key, value = (x[0].astype(np.float32) for x in feeds(states)[:3])
        rounded = States(query, key, value, states.is_visual)
        for options, found in zip(scores, session.run(None, dict(zip(names, feeds(states), strict=True))), strict=True):
            assert found.dtype == np.float32 and np.isfinite(found).all()
            expected = rounded.in_numpy(**options)[states.is_visual]
            loose = 1e-3 * expected.max(initial=0) if options["importance"] == "leave_one_out" else 1e-6
            np.testing.assert_allclose(
                found[0, states.is_visual], expected, rtol=2e-4, atol=loose, err_msg=str(options)
            )
