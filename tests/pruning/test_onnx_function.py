"""The ONNX function agrees with the oracle in ONNX Runtime and in the reference evaluator."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from iwp_export.pruning.onnx_function import DOMAIN, PANEL, node_attributes
from iwp_export.pruning.reference import select_by_importance, selection_gap
from iwp_export.pruning.settings import PruningSettings
from tests.pruning.cases import Case, op_model, random_case

ROUNDING = 1e-5
"""Priorities lie in [0, 1]; float32 sums over some hundred terms differ by less than this."""


def run(model: onnx.ModelProto, case: Case, num_keep: int, dtype: type = np.float32) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, case.feeds(num_keep, dtype))[0]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("num_keep", [0, 1, 7, 29, 96])
def test_equals_oracle(seed: int, num_keep: int) -> None:
    case = random_case(seed, 96, clusters=6 * (seed % 2))
    settings = PruningSettings()
    kept = run(op_model(case, settings), case, num_keep)
    assert kept.shape == (1, num_keep + case.num_text)
    expected = select_by_importance(*case.visual(), num_keep)
    if not np.array_equal(kept[0], case.kept(expected)):
        assert selection_gap(case.chosen(kept[0]), *case.visual()) < ROUNDING


VARIANTS: list[dict[str, Any]] = [
    dict(zip(("similarity", "duplication_norm"), v, strict=True))
    for v in itertools.product(["dual_weight", "value", "key", "kernel"], ["none", "minmax"])
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v.values()))
def test_variants_equal_oracle(variant: dict) -> None:
    case = random_case(3, 60, kv_heads=4, size=8)
    settings = PruningSettings(chunk=3, growth=1, penalty=2.0, **variant)
    kept = run(op_model(case, settings), case, 20)
    expected = case.kept(select_by_importance(*case.visual(), 20, **settings.selection()))
    if not np.array_equal(kept[0], expected):
        assert selection_gap(case.chosen(kept[0]), *case.visual(), **settings.selection()) < ROUNDING


@pytest.mark.parametrize("similarity", ["dual_weight", "value", "key", "kernel"])
@pytest.mark.parametrize("num_keep", [1, PANEL - 1, PANEL, PANEL + 1, 100])
def test_coverage_equals_oracle(similarity: Any, num_keep: int) -> None:
    """Budgets at and beyond a panel; tokens are near-copies of a few at odd budgets."""
    settings = PruningSettings(select="coverage", similarity=similarity)
    case = random_case(num_keep, 130, clusters=20 * (num_keep % 2))
    kept = run(op_model(case, settings), case, num_keep)
    expected = case.kept(select_by_importance(*case.visual(), num_keep, **settings.selection()))
    if not np.array_equal(kept[0], expected):
        assert selection_gap(case.chosen(kept[0]), *case.visual(), **settings.selection()) < ROUNDING


@pytest.mark.parametrize("num_keep", [39, 41, 70])
def test_coverage_takes_the_first_where_all_is_explained(num_keep: int) -> None:
    """Two panels and more of 40 tokens, each of them there twice or thrice, and some zero vectors."""
    settings = PruningSettings(select="coverage")
    case = random_case(5, 100, text=0, kv_heads=2, size=64)
    for x in (case.key, case.value):
        x[:, 40:] = x[:, np.arange(60) % 40]
    case.value[:, 90:] = 0
    kept = run(op_model(case, settings), case, num_keep)
    assert np.array_equal(kept[0], select_by_importance(*case.visual(), num_keep, **settings.selection()))


@pytest.mark.parametrize(("n", "text", "num_keep"), [(0, 1, 0), (1, 4, 1), (5, 3, 0), (5, 3, 5), (12, 0, 4)])
def test_coverage_at_edge_lengths(n: int, text: int, num_keep: int) -> None:
    settings = PruningSettings(select="coverage")
    case, model = random_case(0, n, text=text), op_model(random_case(0, n, text=text), settings)
    onnx.checker.check_model(model, full_check=True)
    expected = case.kept(select_by_importance(*case.visual(), num_keep, **settings.selection()))
    assert np.array_equal(run(model, case, num_keep)[0], expected)
    assert np.array_equal(ReferenceEvaluator(model).run(None, case.feeds(num_keep))[0][0], expected)


@pytest.mark.parametrize(
    ("n", "text", "num_keep"), [(0, 1, 0), (0, 6, 0), (1, 4, 1), (1, 0, 1), (5, 3, 0), (5, 3, 5), (12, 0, 4)]
)
def test_edge_lengths(n: int, text: int, num_keep: int) -> None:
    """No visual token (a decode step is one text token), one, none kept, all kept, no text."""
    case = random_case(0, n, text=text)
    kept = run(op_model(case, PruningSettings()), case, num_keep)
    assert np.array_equal(kept[0], case.kept(select_by_importance(*case.visual(), num_keep)))


@pytest.mark.parametrize("score", [0.0, 3.5, -1e20])
def test_equal_scores_keep_the_first(score: float) -> None:
    case = random_case(1, 20, text=0)
    case.importance[:] = score
    for x in (case.key, case.value):
        x[:] = x[:, :1]
    kept = run(op_model(case, PruningSettings()), case, 6)
    assert kept[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_any_range_of_scores_is_brought_to_0_and_1() -> None:
    case = random_case(1, 40)
    case.importance = case.importance * np.float32(2.0**60) - np.float32(2.0**62)
    kept = run(op_model(case, PruningSettings()), case, 12)
    assert selection_gap(case.chosen(kept[0]), *case.visual()) < ROUNDING


def test_zero_vectors() -> None:
    case = random_case(2, 24)
    case.value[:, ::2] = 0
    case.key[:, ::3] = 0
    kept = run(op_model(case, PruningSettings()), case, 10)
    assert np.array_equal(kept[0], case.kept(select_by_importance(*case.visual(), 10)))
    case.value[:] = 0
    kept = run(op_model(case, PruningSettings()), case, 10)
    best = np.argsort(-case.visual()[0], kind="stable")[:10]  # nothing resembles anything: the rounds change nothing
    assert np.array_equal(kept[0], case.kept(best))


def test_float16_inputs_are_scored_in_float32() -> None:
    """Squares of 300 overflow float16."""
    case = random_case(4, 40)
    key, value = (x.astype(np.float16) for x in (case.key, 300 * case.value))
    half = Case(case.importance, key, value, case.is_visual)
    kept = run(op_model(half, PruningSettings(), onnx.TensorProto.FLOAT16), half, 12, np.float16)
    chosen = half.chosen(kept[0])
    assert len(chosen) == 12
    assert selection_gap(chosen, *half.visual()) < ROUNDING


def test_reference_evaluator() -> None:
    for n, num_keep in [(30, 9), (0, 0), (1, 1), (6, 6)]:
        case = random_case(n, n)
        model = op_model(case, PruningSettings())
        kept = ReferenceEvaluator(model).run(None, case.feeds(num_keep))[0]
        assert np.array_equal(kept[0], case.kept(select_by_importance(*case.visual(), num_keep)))


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_checker_and_shape_inference(opset: int) -> None:
    model = op_model(random_case(0, 8), PruningSettings(), opset=opset)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True)


def test_batch_of_two_is_refused_not_ignored() -> None:
    case = random_case(0, 8)
    model = op_model(case, PruningSettings())
    for value in model.graph.input[:4]:
        value.type.tensor_type.shape.dim[0].dim_param = "B"
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {name: np.repeat(x, 2, 0) if x.ndim > 1 else x for name, x in case.feeds(4).items()}
    with pytest.raises(Exception, match=r"Squeeze|Dimension"):
        session.run(None, feeds)


def test_node_attributes_name_the_plugin() -> None:
    attributes = node_attributes(PruningSettings(chunk=4))
    assert attributes["plugin_namespace"] == DOMAIN
    assert attributes["chunk"] == 4
    assert attributes["plugin_version"] == "3"
    assert attributes["tensorrt_plugin_shape_input_indices"] == [4]
    assert not {"heads", "importance"} & attributes.keys()
