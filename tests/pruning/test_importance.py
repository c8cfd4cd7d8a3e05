"""Every score, by its formula: in numpy, in torch, and traced into ONNX."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.export import Dim

from iwp_export.pruning.importance import VARIANTS, token_importance
from iwp_export.pruning.settings import Heads, Magnitude
from tests.pruning.cases import random_states

FAST = settings(max_examples=40, deadline=None)
SCORES: list[tuple[Magnitude, Heads]] = list(itertools.product(VARIANTS, ("softmax", "raw")))  # type: ignore[arg-type]
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
        return self.query[None], self.key[None], self.value[None], self.is_visual[None]

    def in_numpy(self, magnitude: Magnitude, heads: Heads) -> np.ndarray:
        return token_importance(np, *self.batch(), magnitude=magnitude, heads=heads)[0]

    def in_torch(self, magnitude: Magnitude, heads: Heads) -> np.ndarray:
        tensors = map(torch.from_numpy, self.batch())
        return token_importance(torch, *tensors, magnitude=magnitude, heads=heads)[0].numpy()


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


def by_the_formula(states: States, magnitude: Magnitude, heads: Heads) -> np.ndarray:
    """Scores of the visual tokens, head by head and token by token in float64."""
    query = states.query.astype(np.float64).mean(1)
    key, value = (x[:, states.is_visual].astype(np.float64) for x in (states.key, states.value))
    group, root = HEADS // KV_HEADS, np.sqrt(SIZE)
    rows = []
    for h in range(HEADS):
        k, v = key[h // group], value[h // group]
        logits = [x @ x / (2 * root) if magnitude == "update" else query[h] @ x / root for x in k]
        norms = np.array([np.linalg.norm(x) for x in (k if magnitude == "key" else v)])
        kernel = np.exp(logits) / (np.exp(logits).sum() if heads == "softmax" else 1)
        rows.append({"value": norms, "key": norms, "kernel": kernel}.get(magnitude, kernel * norms))
    return np.mean(rows, axis=0)


@pytest.mark.parametrize(("magnitude", "heads"), SCORES)
@FAST
@given(states=calls)
def test_numpy_and_torch_compute_the_formula(magnitude: Magnitude, heads: Heads, states: States) -> None:
    expected = by_the_formula(states, magnitude, heads)
    for found in (states.in_numpy(magnitude, heads), states.in_torch(magnitude, heads)):
        assert found.dtype == np.float32 and found.shape == states.is_visual.shape
        scores = found[states.is_visual]
        if heads == "raw":  # it subtracts one maximum, which is one factor
            scores = scores * (expected.max() / scores.max())
        np.testing.assert_allclose(scores, expected, **TOLERANCE)


@pytest.mark.parametrize(("magnitude", "heads"), SCORES)
def test_text_changes_nothing(magnitude: Magnitude, heads: Heads) -> None:
    states = random_call(1, 20, 7, 3)
    other = replace(states, key=states.key.copy(), value=states.value.copy())
    other.key[:, ~states.is_visual] *= 50
    other.value[:, ~states.is_visual] += 9
    for compute in ("in_numpy", "in_torch"):
        scores, again = (getattr(x, compute)(magnitude, heads)[x.is_visual] for x in (states, other))
        np.testing.assert_array_equal(scores, again)


@pytest.mark.parametrize(("magnitude", "heads"), SCORES)
@pytest.mark.parametrize("text", [1, 6])
def test_a_call_without_visual_tokens_is_finite(magnitude: Magnitude, heads: Heads, text: int) -> None:
    states = random_call(0, 0, text, 1)
    with np.errstate(all="raise"):
        assert np.isfinite(states.in_numpy(magnitude, heads)).all()
    assert np.isfinite(states.in_torch(magnitude, heads)).all()


@pytest.mark.parametrize(("magnitude", "heads"), SCORES)
def test_huge_logits_do_not_overflow(magnitude: Magnitude, heads: Heads) -> None:
    states = random_call(0, 20, 5, 2, scale=1e3)
    states.key *= 30
    with np.errstate(over="raise", invalid="raise"):
        assert np.isfinite(states.in_numpy(magnitude, heads)).all()
    assert np.isfinite(states.in_torch(magnitude, heads)).all()


@FAST
@given(calls, st.floats(-30, 30))
def test_softmax_ignores_a_constant_in_one_heads_logits(states: States, shift: float) -> None:
    """A key that is the same for all tokens adds q.k to every logit of a head."""
    query, key, shifted = states.query.copy(), states.key.copy(), states.key.copy()
    query[: HEADS // KV_HEADS, :, -1] = [[1], [0]]  # of the heads that share a key, only one sees the constant
    key[0, :, -1] = 0
    shifted[0, :, -1] = shift
    plain, moved = (replace(states, query=query, key=k).in_numpy("kernel_value", "softmax") for k in (key, shifted))
    np.testing.assert_allclose(moved[states.is_visual], plain[states.is_visual], **TOLERANCE)


def test_samples_of_a_batch_are_independent() -> None:
    samples = [random_call(seed, 12, 4, 3) for seed in range(3)]
    arrays = [np.concatenate(parts) for parts in zip(*(sample.batch() for sample in samples), strict=True)]
    for magnitude, heads in SCORES:
        scores = token_importance(np, *arrays, magnitude=magnitude, heads=heads)
        for row, sample in zip(scores, samples, strict=True):
            np.testing.assert_allclose(row, sample.in_numpy(magnitude, heads), rtol=1e-5)


class Traced(torch.nn.Module):
    """A score as the decoder traces it."""

    def __init__(self, magnitude: Magnitude, heads: Heads) -> None:
        super().__init__()
        self.options: dict[str, Any] = {"magnitude": magnitude, "heads": heads}

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visual: torch.Tensor) -> Any:
        return token_importance(torch, query.float(), key.float(), value.float(), visual, **self.options)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("magnitude", "heads"), [*SCORES[:2], *SCORES[2::2], SCORES[-1]])
def test_traced_it_is_plain_operators_in_float32(magnitude: Magnitude, heads: Heads, dtype: Any) -> None:
    def feeds(states: States) -> list[np.ndarray]:
        return [x if x.dtype == bool else x.astype(dtype) for x in states.batch()]

    names = ("query", "key", "value", "visual")
    tokens, queries = Dim("tokens", max=1 << 20), Dim("queries", max=1 << 20)
    example = tuple(torch.from_numpy(x) for x in feeds(random_call(0, 7, 4, 3)))
    program = torch.onnx.export(
        Traced(magnitude, heads).eval(),
        example,
        input_names=names,
        dynamic_shapes={"query": {2: queries}, "key": {2: tokens}, "value": {2: tokens}, "visual": {1: tokens}},
        opset_version=23,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    graph = program.model.graph
    assert {node.domain for node in graph} <= {"", "ai.onnx"}
    assert {"If", "Loop", "NonZero", "Shape"}.isdisjoint(node.op_type for node in graph)
    narrow = {v.dtype.name for node in graph if node.op_type != "Cast" for v in node.outputs if v.dtype is not None}
    assert "FLOAT16" not in narrow and "DOUBLE" not in narrow
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for visual, text, count in ((30, 9, 5), (1, 0, 1), (0, 1, 1), (2, 1, 1)):
        states = random_call(visual, visual, text, count)
        found = session.run(None, dict(zip(names, feeds(states), strict=True)))[0][0]
        assert found.dtype == np.float32 and np.isfinite(found).all()
        query, key, value = (x[0].astype(np.float32) for x in feeds(states)[:3])
        rounded = States(query, key, value, states.is_visual)
        expected = rounded.in_numpy(magnitude, heads)
        np.testing.assert_allclose(found[states.is_visual], expected[states.is_visual], **TOLERANCE)


def test_it_needs_numpy_alone() -> None:
    code = (
        "import sys; from iwp_export.pruning.importance import token_importance;"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
