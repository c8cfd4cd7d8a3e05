"""The C++ plugin called as TensorRT calls it, over kernels that run on the CPU: its answers are the oracle's."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from iwp_export.engine.kernels import ALIGNMENT, MATRIX_TOKENS, SELECTS, NoKernels, SelectionOptions, SelectionShape
from iwp_export.engine.kernels import DATA_TYPES as FLOAT_TYPES
from iwp_export.engine.plugin import ATTRIBUTES, FIELDS
from iwp_export.pruning.onnx_function import DOMAIN, OP_TYPE, VERSION
from tests.plugins.cuda.cases import Case, make_case
from tests.plugins.cuda.runners import CANARY
from tests.plugins.tensorrt.harness import DATA_TYPES, FIELD_TYPES, LINEAR, VECTORISED, Harness, tensors

GIVEN: dict[str, Any] = {
    "chunk": 3,
    "growth": 4,
    "penalty": 2.5,
    "similarity": "key",
    "duplication_norm": "minmax",
    "select": "coverage",
}
STORED = {**GIVEN, "workspace": 5 << 30}
"""What an engine stores; more bytes than 32 bits can say."""
TENSORRT_10, TENSORRT_11, NO_LOGGER, NO_FINDER = 10, 11, 1, 0


def test_creator_says_what_the_python_plugin_says(shell: Harness) -> None:
    assert shell.identity() == (OP_TYPE, str(VERSION), DOMAIN)
    kinds = {str: "text", np.int32: "int32", np.float32: "float32"}
    assert shell.advertised_fields() == {name: FIELD_TYPES[kinds[kind]] for name, kind in ATTRIBUTES.items()}


@pytest.mark.parametrize(("end_mark", "whole"), [(b"", "int32"), (b"\0", "int32"), (b"", "int64")])
def test_fields_arrive_and_are_serialised(shell: Harness, end_mark: bytes, whole: str) -> None:
    plugin = _create(shell, STORED, end_mark=end_mark, whole=whole, of_engine=True)
    assert list(shell.serialized(plugin)) == list(FIELDS)
    assert shell.serialized(plugin) == STORED
    for how in ("clone", "attach"):
        copy = shell.copy(plugin, how)
        shell.calls.destroy(plugin)
        assert shell.serialized(copy) == STORED
        plugin = copy
    shell.calls.destroy(plugin)


@pytest.mark.parametrize("name", FIELDS)
def test_refuses_a_missing_field(shell: Harness, name: str) -> None:
    shell.set_logger(TENSORRT_10)
    values = {key: value for key, value in STORED.items() if key != name}
    assert shell.create(values, of_engine=True) is None
    assert f"the engine lacks the fields {name}; build it again" in shell.messages()
    if name in ATTRIBUTES:
        assert shell.create(values) is None
        assert f"the node lacks the attributes {name}; export" in shell.messages()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("similarity", "mean", "similarity must be one of dual_weight, value, key, kernel, the node has 'mean'"),
        ("similarity", 1, "similarity must be one of"),
        ("duplication_norm", "", "duplication_norm must be one of none, minmax"),
        ("select", "best", "select must be one of mmr, coverage, the node has 'best'"),
        ("chunk", 0, "chunk must be a whole number, 1 or more"),
        ("chunk", 1.5, "chunk must be a whole number"),
        ("growth", "2", "growth must be a whole number"),
        ("penalty", -1.0, "penalty must be a finite number, 0 or more"),
        ("penalty", float("nan"), "penalty must be a finite number"),
        ("penalty", float("inf"), "penalty must be a finite number"),
        ("workspace", 0, "workspace must be a whole number, 1 or more"),
    ],
)
def test_refuses_what_the_kernels_do_not_compute(shell: Harness, name: str, value: object, message: str) -> None:
    shell.set_logger(TENSORRT_10)
    assert shell.create({**STORED, name: value}, of_engine=True) is None
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
    assert shell.calls.output_shape(plugin, 1) == b"3.0 num_kept "
    shell.set_logger(TENSORRT_11)
    assert shell.calls.output_shape(plugin, 0) == b""
    assert "tensorrt_plugin_shape_input_indices = [4]" in shell.messages()


@pytest.mark.parametrize("data_type", DATA_TYPES)
def test_supports_one_floating_type_in_linear_layout(shell: Harness, data_type: str) -> None:
    plugin = _create(shell, GIVEN)
    good = tensors(_shapes(1, 2, 9, 16, 5), data_type)
    is_float = data_type in FLOAT_TYPES
    assert [shell.calls.supports(plugin, i, good) for i in range(5)] == [True, is_float, is_float, True, True]
    for position in range(5):
        mixed = tensors(_shapes(1, 2, 9, 16, 5), "float16")
        mixed[position].desc.format = VECTORISED
        assert not shell.calls.supports(plugin, position, mixed)
        mixed[position].desc.format, mixed[position].desc.type = LINEAR, DATA_TYPES["int8"]
        assert not shell.calls.supports(plugin, position, mixed)
    mixed = tensors(_shapes(1, 2, 9, 16, 5), "float16")
    mixed[2].desc.type = DATA_TYPES["float32"]
    assert not shell.calls.supports(plugin, 2, mixed)


def test_stores_what_it_asks_for(shell: Harness) -> None:
    plugin = _create(shell, GIVEN)
    assert shell.serialized(plugin)["workspace"] == 0
    largest = 0
    for tokens in (600, MATRIX_TOKENS + 1, 10):
        profile = tensors(_shapes(1, 2, tokens, 16, tokens), "float16")
        assert shell.calls.configure(plugin, profile) == 0
        asked = shell.calls.workspace_size(plugin, profile)
        shape = SelectionShape(1, 2, tokens, 16, tokens, "float16")
        assert asked == NoKernels().workspace_bytes(shape, SelectionOptions(**GIVEN))
        largest = max(largest, asked)
        assert shell.serialized(plugin)["workspace"] == largest


def test_a_profile_may_allow_more_kept_tokens_than_tokens(shell: Harness) -> None:
    plugin = _create(shell, GIVEN)
    assert shell.calls.configure(plugin, tensors(_shapes(1, 2, 9, 16, 4096), "float16")) == 0
    assert shell.calls.workspace_size(plugin, tensors(_shapes(1, 2, 9, 16, 4096), "float16")) > 0


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((1, 2, 9, 264, 5), "head_dim within 1 and 256"),
        ((1, 5000, 9, 16, 5), "kv_heads must be within 1 and 4096"),
        ((1, 2, 2**21, 16, 5), "tokens within 0 and 2^20"),
        ((1, 2, 2**40, 16, 5), "tokens within 0 and 2^20"),
    ],
)
def test_building_fails_for_sizes_beyond_the_kernels(shell: Harness, shapes: Sequence[int], message: str) -> None:
    plugin = _create(shell, GIVEN)
    shell.set_logger(TENSORRT_11)
    assert shell.calls.configure(plugin, tensors(_shapes(*shapes), "float16")) != 0
    assert message in shell.messages()


def test_building_fails_for_values_of_another_head_size(shell: Harness) -> None:
    plugin = _create(shell, GIVEN)
    shapes = _shapes(1, 2, 9, 16, 5)
    shapes[2] = (1, 2, 9, 8)
    shell.set_logger(TENSORRT_10)
    assert shell.calls.configure(plugin, tensors(shapes, "float16")) != 0
    assert "with one head size for both" in shell.messages()
    assert "the graph has [1, 9] [1, 2, 9, 16] [1, 2, 9, 8] [1, 9] and an output [1, 5]" in shell.messages()


@pytest.mark.parametrize("data_type", FLOAT_TYPES)
@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize(("similarity", "norm"), [("dual_weight", "none"), ("key", "minmax")])
def test_enqueue_selects_what_the_oracle_selects(
    shell: Harness, data_type: str, similarity: str, norm: str, select: str
) -> None:
    case = make_case(
        np.random.default_rng(7),
        visual=60,
        text=5,
        keep=0.4,
        batch=2,
        data_type=data_type,
        clusters=6,
        similarity=similarity,
        duplication_norm=norm,
        select=select,
        chunk=3,
        penalty=2.5,
    )
    error, kept = _run(shell, case, longest=2 * case.shape.tokens)
    assert error == 0
    case.judge(kept)


def test_enqueue_refuses_to_keep_more_than_there_is(shell: Harness) -> None:
    case = make_case(np.random.default_rng(8), visual=20, text=5, keep=0.4)
    case.shape = replace(case.shape, num_kept=case.shape.tokens + 1)
    shell.set_logger(TENSORRT_10)
    error, kept = _run(shell, case, longest=case.shape.tokens)
    assert error != 0 and (kept == -1).all()
    assert "batch within 0 and 65535 (key [1, 2, 25, 32], kept_index [1, 26])" in shell.messages()


def test_enqueue_refuses_more_than_its_scratch_memory_holds(shell: Harness) -> None:
    case = make_case(np.random.default_rng(9), visual=90, text=5, keep=0.4)
    shell.set_logger(TENSORRT_10)
    error, kept = _run(shell, case, longest=case.shape.tokens - 5)
    assert error != 0 and (kept == -1).all()
    assert "the workspace is smaller than these sizes need" in shell.messages()


def test_enqueue_refuses_importance_of_another_length(shell: Harness) -> None:
    case = make_case(np.random.default_rng(9), visual=90, text=5, keep=0.4)
    shell.set_logger(TENSORRT_10)
    error, kept = _run(shell, case, longest=case.shape.tokens, importance=case.shape.tokens - 1)
    assert error != 0 and (kept == -1).all()
    assert "the graph has [1, 94] [1, 2, 95, 32]" in shell.messages()


def _run(shell: Harness, case: Case, longest: int, importance: int | None = None) -> tuple[int, np.ndarray]:
    """Run a case in an engine for up to `longest` tokens; its importance may have another length."""
    s = case.shape
    values = asdict(case.options)
    builder = _create(shell, values)
    profile = tensors(_shapes(s.batch, s.kv_heads, longest, s.head_dim, longest), s.data_type)
    assert shell.calls.configure(builder, profile) == 0
    granted = shell.calls.workspace_size(builder, profile)
    plugin = _create(shell, shell.serialized(builder), of_engine=True)
    memory = np.full(granted + 2 * ALIGNMENT, CANARY, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    kept = np.full((s.batch, s.num_kept), -1, np.int64)
    arrays = [*case.encoded(), case.is_visual.astype(np.int32), kept]
    shapes = _shapes(s.batch, s.kv_heads, s.tokens, s.head_dim, s.num_kept)
    shapes[0] = (s.batch, importance or s.tokens)
    error = shell.enqueue(plugin, shapes, s.data_type, arrays, memory.ctypes.data + start)
    assert (memory[:start] == CANARY).all() and (memory[start + granted :] == CANARY).all()
    return error, kept


def _create(shell: Harness, values: dict[str, Any], **how: Any) -> ctypes.c_void_p:
    plugin = shell.create(values, **how)
    assert plugin is not None, shell.messages()
    return plugin


def _shapes(batch: int, kv_heads: int, tokens: int, head_dim: int, kept: int) -> list[tuple[int, ...]]:
    key = (batch, kv_heads, tokens, head_dim)
    return [(batch, tokens), key, key, (batch, tokens), (batch, kept)]
