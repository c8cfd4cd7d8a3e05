"""The C++ plugin called as TensorRT calls it, over kernels that run on the CPU: its answers are the oracle's."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from iwp_export.engine.kernels import ALIGNMENT, PAIR_MATRIX_TOKENS
from iwp_export.engine.plugin import FIELDS
from iwp_export.pruning.onnx_function import DOMAIN, OP_TYPE, VERSION
from iwp_export.pruning.settings import PruningSettings
from tests.plugins.cuda.cases import Case, make_case
from tests.plugins.tensorrt.harness import DATA_TYPES, FIELD_TYPES, LINEAR, VECTORISED, Harness, tensors

GIVEN: dict[str, Any] = {
    "chunk": 3,
    "growth": 4,
    "penalty": 2.5,
    "heads": "raw",
    "magnitude": "kernel_value",
    "similarity": "dual_weight",
    "duplication_norm": "minmax",
}
TENSORRT_10, TENSORRT_11, NO_LOGGER, NO_FINDER = 10, 11, 1, 0


def test_creator_says_what_the_python_plugin_says(shell: Harness) -> None:
    assert shell.identity() == (OP_TYPE, str(VERSION), DOMAIN)
    kinds = {str: "text", np.int32: "int32", np.float32: "float32"}
    assert shell.advertised_fields() == {name: FIELD_TYPES[kinds[kind]] for name, kind in FIELDS.items()}


@pytest.mark.parametrize(("end_mark", "whole"), [(b"", "int32"), (b"\0", "int32"), (b"", "int64")])
def test_fields_arrive_and_are_serialised(shell: Harness, end_mark: bytes, whole: str) -> None:
    plugin = _create(shell, GIVEN, end_mark=end_mark, whole=whole)
    assert shell.serialized(plugin) == GIVEN
    for how in ("clone", "attach"):
        copy = shell.copy(plugin, how)
        shell.calls.destroy(plugin)
        assert shell.serialized(copy) == GIVEN
        plugin = copy
    shell.calls.destroy(plugin)


@pytest.mark.parametrize("name", FIELDS)
def test_refuses_a_missing_field(shell: Harness, name: str) -> None:
    shell.set_logger(TENSORRT_10)
    assert shell.create({key: value for key, value in GIVEN.items() if key != name}) is None
    assert f"lacks the attributes {name};" in shell.messages()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("magnitude", "value", "magnitude 'value' has no CUDA kernel, only 'kernel_value' has"),
        ("similarity", "key", "similarity 'key' has no CUDA kernel, only 'dual_weight' has"),
        ("heads", "mean", "heads must be one of softmax, raw, the node has 'mean'"),
        ("heads", 1, "heads must be one of"),
        ("duplication_norm", "", "duplication_norm must be one of none, minmax"),
        ("chunk", 0, "chunk must be a whole number, 1 or more"),
        ("chunk", 1.5, "chunk must be a whole number"),
        ("growth", "2", "growth must be a whole number"),
        ("penalty", -1.0, "penalty must be a finite number, 0 or more"),
        ("penalty", float("nan"), "penalty must be a finite number"),
        ("penalty", float("inf"), "penalty must be a finite number"),
    ],
)
def test_refuses_what_the_kernels_do_not_compute(shell: Harness, name: str, value: object, message: str) -> None:
    shell.set_logger(TENSORRT_10)
    assert shell.create({**GIVEN, name: value}) is None
    assert message in shell.messages()


@pytest.mark.parametrize("which", [TENSORRT_10, TENSORRT_11])
def test_logs_to_the_logger_of_either_tensorrt(shell: Harness, which: int) -> None:
    shell.set_logger(which)
    assert shell.create({}) is None
    assert shell.messages().startswith(f"{which}: iwp::{OP_TYPE}: the node lacks the attributes chunk, growth")


@pytest.mark.parametrize("which", [NO_LOGGER, NO_FINDER])
def test_logs_to_stderr_where_there_is_no_logger(shell: Harness, which: int, capfd: pytest.CaptureFixture[str]) -> None:
    shell.set_logger(which)
    assert shell.create({}) is None
    assert capfd.readouterr().err.startswith(f"iwp::{OP_TYPE}: the node lacks the attributes")


def test_output_is_as_long_as_num_kept(shell: Harness) -> None:
    plugin = _create(shell, GIVEN)
    assert shell.calls.output_type(plugin) == DATA_TYPES["int64"]
    assert shell.calls.output_shape(plugin, 1) == b"4.0 num_kept "
    shell.set_logger(TENSORRT_11)
    assert shell.calls.output_shape(plugin, 0) == b""
    assert "tensorrt_plugin_shape_input_indices = [5]" in shell.messages()


@pytest.mark.parametrize("data_type", DATA_TYPES)
def test_supports_one_floating_type_in_linear_layout(shell: Harness, data_type: str) -> None:
    plugin = _create(shell, GIVEN)
    good = tensors(_shapes(1, 4, 2, 9, 16, 5), data_type)
    is_float = data_type in ("float32", "float16", "bfloat16")
    assert [shell.calls.supports(plugin, i, good) for i in range(6)] == [is_float] * 4 + [True] * 2
    for position in range(6):
        mixed = tensors(_shapes(1, 4, 2, 9, 16, 5), "float16")
        mixed[position].desc.format = VECTORISED
        assert not shell.calls.supports(plugin, position, mixed)
        mixed[position].desc.format, mixed[position].desc.type = LINEAR, DATA_TYPES["int8"]
        assert not shell.calls.supports(plugin, position, mixed)
    mixed = tensors(_shapes(1, 4, 2, 9, 16, 5), "float16")
    mixed[2].desc.type = DATA_TYPES["float32"]
    assert not shell.calls.supports(plugin, 2, mixed)


def test_workspace_suffices_for_every_shorter_prompt(shell: Harness) -> None:
    plugin = _create(shell, {**GIVEN, **PruningSettings().selection()})
    sizes = [
        shell.calls.workspace_size(plugin, tensors(_shapes(1, 4, 2, n, 16, n), "float16"))
        for n in (1, 600, PAIR_MATRIX_TOKENS, PAIR_MATRIX_TOKENS + 1, 2 * PAIR_MATRIX_TOKENS)
    ]
    assert sizes == sorted(sizes) and sizes[0] > 0


def test_a_profile_may_allow_more_kept_tokens_than_tokens(shell: Harness) -> None:
    plugin = _create(shell, GIVEN)
    assert shell.calls.configure(plugin, tensors(_shapes(1, 4, 2, 9, 16, 4096), "float16")) == 0
    assert shell.calls.workspace_size(plugin, tensors(_shapes(1, 4, 2, 9, 16, 4096), "float16")) > 0


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((1, 4, 2, 9, 264, 5), "head_dim within 1 and 256"),
        ((1, 5, 2, 9, 16, 5), "heads must be a multiple of kv_heads"),
        ((1, 4, 2, 2**21, 16, 5), "tokens within 0 and 2^20"),
        ((1, 4, 2, 2**40, 16, 5), "tokens within 0 and 2^20"),
    ],
)
def test_building_fails_for_sizes_beyond_the_kernels(shell: Harness, shapes: Sequence[int], message: str) -> None:
    plugin = _create(shell, GIVEN)
    shell.set_logger(TENSORRT_11)
    assert shell.calls.configure(plugin, tensors(_shapes(*shapes), "float16")) != 0
    assert message in shell.messages()


def test_building_fails_for_values_of_another_head_size(shell: Harness) -> None:
    plugin = _create(shell, GIVEN)
    shapes = _shapes(1, 4, 2, 9, 16, 5)
    shapes[3] = (1, 2, 9, 8)
    shell.set_logger(TENSORRT_10)
    assert shell.calls.configure(plugin, tensors(shapes, "float16")) != 0
    assert (
        "all with one head size; the graph has [1, 4, 16] [1, 2, 9, 16] [1, 2, 9, 16] [1, 2, 9, 8]" in shell.messages()
    )


@pytest.mark.parametrize("data_type", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("weighting", ["softmax", "raw"])
def test_enqueue_selects_what_the_oracle_selects(shell: Harness, data_type: str, weighting: str) -> None:
    case = make_case(
        np.random.default_rng(7),
        visual=60,
        text=5,
        keep=0.4,
        batch=2,
        data_type=data_type,
        clusters=6,
        weighting=weighting,
        duplication_norm="minmax" if weighting == "raw" else "none",
        chunk=3,
        penalty=2.5,
    )
    error, kept = _run(shell, case, case.shape.num_kept, longest=2 * case.shape.tokens)
    assert error == 0
    case.judge(kept)


def test_enqueue_refuses_to_keep_more_than_there_is(shell: Harness) -> None:
    case = make_case(np.random.default_rng(8), visual=20, text=5, keep=0.4)
    shell.set_logger(TENSORRT_10)
    error, kept = _run(shell, case, case.shape.tokens + 1, longest=case.shape.tokens)
    assert error != 0 and (kept == -1).all()
    assert "num_kept within 0 and tokens (key [1, 2, 25, 32], kept_index [1, 26])" in shell.messages()


def _run(shell: Harness, case: Case, num_kept: int, longest: int) -> tuple[int, np.ndarray]:
    """Run a case in the scratch memory that the plugin asks for a profile of up to `longest` tokens."""
    s, o = case.shape, case.options
    values = {"chunk": o.chunk, "growth": o.growth, "penalty": o.penalty}
    plugin = _create(shell, {**GIVEN, **values, "heads": o.heads, "duplication_norm": o.duplication_norm})
    profile = tensors(_shapes(s.batch, s.heads, s.kv_heads, longest, s.head_dim, longest), s.data_type)
    assert shell.calls.configure(plugin, profile) == 0
    memory = np.full(shell.calls.workspace_size(plugin, profile) + ALIGNMENT, 0xA5, np.uint8)
    workspace = memory.ctypes.data + -memory.ctypes.data % ALIGNMENT
    kept = np.full((s.batch, num_kept), -1, np.int64)
    arrays = [*case.encoded(), case.is_visual.astype(np.int32), kept]
    shapes = _shapes(s.batch, s.heads, s.kv_heads, s.tokens, s.head_dim, num_kept)
    return shell.enqueue(plugin, shapes, s.data_type, arrays, workspace), kept


def _create(shell: Harness, values: dict[str, Any], **how: Any) -> ctypes.c_void_p:
    plugin = shell.create(values, **how)
    assert plugin is not None, shell.messages()
    return plugin


def _shapes(batch: int, heads: int, kv_heads: int, tokens: int, head_dim: int, kept: int) -> list[tuple[int, ...]]:
    key = (batch, kv_heads, tokens, head_dim)
    return [(batch, heads, head_dim), key, key, key, (batch, tokens), (batch, kept)]
