"""The ONNX function agrees with the oracle in ONNX Runtime and in the reference evaluator."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from iwp_export.pruning.onnx_function import DOMAIN, node_attributes
from iwp_export.pruning.reference import select_tokens, selection_gap
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
    expected = select_tokens(*case.visual(), num_keep)
    if not np.array_equal(kept[0], case.kept(expected)):
        assert selection_gap(case.chosen(kept[0]), *case.visual()) < ROUNDING


VARIANTS = [
    dict(zip(("magnitude", "similarity", "heads", "duplication_norm"), v, strict=True))
    for v in itertools.product(
        ["kernel_value", "kernel", "value", "key", "update"],
        ["dual_weight", "value", "key", "kernel"],
        ["softmax", "raw"],
        ["none", "minmax"],
    )
]


@pytest.mark.parametrize("variant", VARIANTS[::3], ids=lambda v: "-".join(v.values()))
def test_variants_equal_oracle(variant: dict) -> None:
    case = random_case(3, 60, kv_heads=4, size=8)
    settings = PruningSettings(chunk=3, growth=1, penalty=2.0, **variant)
    kept = run(op_model(case, settings), case, 20)
    expected = case.kept(select_tokens(*case.visual(), 20, **settings.selection()))
    if not np.array_equal(kept[0], expected):
        assert selection_gap(case.chosen(kept[0]), *case.visual(), **settings.selection()) < ROUNDING


@pytest.mark.parametrize(
    ("n", "text", "num_keep"), [(0, 1, 0), (0, 6, 0), (1, 4, 1), (1, 0, 1), (5, 3, 0), (5, 3, 5), (12, 0, 4)]
)
def test_edge_lengths(n: int, text: int, num_keep: int) -> None:
    """No visual token (a decode step is one text token), one, none kept, all kept, no text."""
    case = random_case(0, n, text=text)
    kept = run(op_model(case, PruningSettings()), case, num_keep)
    assert np.array_equal(kept[0], case.kept(select_tokens(*case.visual(), num_keep)))


@pytest.mark.parametrize("heads", ["softmax", "raw"])
def test_equal_scores_keep_the_first(heads: str) -> None:
    case = random_case(1, 20, text=0)
    for x in (case.key, case.key_rotated, case.value):
        x[:] = x[:, :1]
    kept = run(op_model(case, PruningSettings(heads=heads)), case, 6)  # type: ignore[arg-type]
    assert kept[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_zero_vectors() -> None:
    case = random_case(2, 24)
    case.value[:, ::2] = 0
    case.key_rotated[:, ::3] = 0
    kept = run(op_model(case, PruningSettings()), case, 10)
    assert np.array_equal(kept[0], case.kept(select_tokens(*case.visual(), 10)))
    case.value[:] = 0
    kept = run(op_model(case, PruningSettings()), case, 10)
    assert np.array_equal(kept[0], case.kept(np.arange(10)))


def test_float16_inputs_are_scored_in_float32() -> None:
    """Logits of 400 overflow exp in float16 and in float32 without a maximum subtracted."""
    case = random_case(4, 40)
    case.query *= 100
    query, key, rotated, value = (x.astype(np.float16) for x in (case.query, case.key, case.key_rotated, case.value))
    half = Case(query, key, rotated, value, case.is_visual)
    kept = run(op_model(half, PruningSettings(), onnx.TensorProto.FLOAT16), half, 12, np.float16)
    chosen = half.chosen(kept[0])
    assert len(chosen) == 12
    assert selection_gap(chosen, *half.visual()) < ROUNDING


def test_reference_evaluator() -> None:
    for n, num_keep in [(30, 9), (0, 0), (1, 1), (6, 6)]:
        case = random_case(n, n)
        model = op_model(case, PruningSettings())
        kept = ReferenceEvaluator(model).run(None, case.feeds(num_keep))[0]
        assert np.array_equal(kept[0], case.kept(select_tokens(*case.visual(), num_keep)))


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_checker_and_shape_inference(opset: int) -> None:
    model = op_model(random_case(0, 8), PruningSettings(), opset=opset)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True)


def test_batch_of_two_is_refused_not_ignored() -> None:
    case = random_case(0, 8)
    model = op_model(case, PruningSettings())
    for value in model.graph.input[:5]:
        value.type.tensor_type.shape.dim[0].dim_param = "B"
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {name: np.repeat(x, 2, 0) if x.ndim > 1 else x for name, x in case.feeds(4).items()}
    with pytest.raises(Exception, match=r"Squeeze|Dimension"):
        session.run(None, feeds)


def test_node_attributes_name_the_plugin() -> None:
    attributes = node_attributes(PruningSettings(chunk=4))
    assert attributes["plugin_namespace"] == DOMAIN
    assert attributes["chunk"] == 4
    assert attributes["tensorrt_plugin_shape_input_indices"] == [5]
