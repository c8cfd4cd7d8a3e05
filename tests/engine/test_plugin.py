"""The plugin in Python: what a graph gives it, what it asks of the kernels, and that TensorRT-RTX really calls it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from iwp_export.engine.flavour import Flavour
from iwp_export.engine.kernels import SelectionAddresses, SelectionOptions, SelectionShape
from iwp_export.engine.log import make_logger
from iwp_export.engine.network import check_plugin_layers, register_plugin
from iwp_export.engine.plugin import FIELDS, make_creator, options_from_fields
from iwp_export.errors import BackendError
from iwp_export.pruning.onnx_function import node_attributes
from iwp_export.pruning.settings import PruningSettings

HEADS, KV_HEADS, SIZE, TOKENS = 4, 2, 16, 40


@dataclass
class RecordingKernels:
    """Says 4096 bytes, and remembers what it was asked."""

    sizes: list[SelectionShape] = field(default_factory=list)
    calls: list[tuple[SelectionShape, SelectionOptions, SelectionAddresses, int, int]] = field(default_factory=list)

    def workspace_bytes(self, shape: SelectionShape, options: SelectionOptions) -> int:
        self.sizes.append(shape)
        return 4096

    def enqueue(self, *call: Any) -> None:
        self.calls.append(call)


def node_graph(path: Path, settings: PruningSettings, dtype: int = TensorProto.FLOAT16) -> Path:
    """A graph of the op alone, all lengths dynamic."""
    states = [(name, [1, KV_HEADS, "tokens", SIZE]) for name in ("key", "key_rotated", "value")]
    inputs = [
        helper.make_tensor_value_info(name, dtype, shape) for name, shape in [("query", [1, HEADS, SIZE]), *states]
    ]
    inputs.append(helper.make_tensor_value_info("is_visual", TensorProto.INT32, [1, "tokens"]))
    inputs.append(helper.make_tensor_value_info("num_kept", TensorProto.INT64, [1]))
    names = [value.name for value in inputs]
    node = helper.make_node("SelectTokens", names, ["kept_index"], domain="iwp", **node_attributes(settings))
    output = helper.make_tensor_value_info("kept_index", TensorProto.INT64, [1, "kept"])
    graph = helper.make_graph([node], "graph", inputs, [output])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("iwp", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def parse(rtx: Flavour, path: Path, kernels: Any, reports: list[str]) -> tuple[Any, ...]:
    logger = make_logger(rtx.trt)
    register_plugin(rtx, kernels, reports.append)
    builder = rtx.trt.Builder(logger)
    network = builder.create_network(0)
    parser = rtx.trt.OnnxParser(network, logger)
    return parser.parse_from_file(str(path)), network, builder, logger, parser


def build(rtx: Flavour, path: Path, kernels: Any, reports: list[str]) -> Any:
    parsed, network, builder, logger, owner = parse(rtx, path, kernels, reports)
    assert parsed, logger.errors
    check_plugin_layers(rtx.trt, network, 1, "graph")
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(rtx.trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    for name in ("key", "key_rotated", "value"):
        profile.set_shape(name, *[(1, KV_HEADS, n, SIZE) for n in (1, TOKENS, 5000)])
    profile.set_shape("is_visual", *[(1, n) for n in (1, TOKENS, 5000)])
    profile.set_shape_input("num_kept", [1], [10], [5000])
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, logger.errors
    del owner
    return engine


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(TensorProto.FLOAT16, "float16"), (TensorProto.BFLOAT16, "bfloat16"), (TensorProto.FLOAT, "float32")],
)
def test_builds_in_tensorrt_rtx(rtx: Flavour, tmp_path: Path, dtype: int, name: str) -> None:
    kernels, reports = RecordingKernels(), []  # type: ignore[var-annotated]
    build(rtx, node_graph(tmp_path / "node.onnx", PruningSettings(), dtype), kernels, reports)
    assert not reports
    assert {shape.tokens for shape in kernels.sizes} == {5000, 4096}  # below 4096 the kernels keep a matrix of pairs
    assert {(s.batch, s.heads, s.kv_heads, s.head_dim, s.data_type) for s in kernels.sizes} == {
        (1, HEADS, KV_HEADS, SIZE, name)
    }


@pytest.mark.parametrize(("name", "value"), [("magnitude", "value"), ("similarity", "key")])
def test_variants_without_kernels_fail_the_parse_with_a_reason(
    rtx: Flavour, tmp_path: Path, name: str, value: Any
) -> None:
    reports: list[str] = []
    path = node_graph(tmp_path / "node.onnx", PruningSettings(**{name: value}))
    assert not parse(rtx, path, RecordingKernels(), reports)[0]
    assert reports and f"{name} {value!r} has no CUDA kernel" in reports[0]


def test_fields_of_an_engine_are_those_of_the_graph(rtx: Flavour) -> None:
    settings = PruningSettings(chunk=3, growth=4, penalty=2.5, heads="raw", duplication_norm="minmax")
    plugin = made_plugin(rtx, settings, RecordingKernels())
    fields = plugin.get_fields_to_serialize()
    assert [entry.name for entry in fields] == list(FIELDS)
    again = make_creator(rtx.trt, RecordingKernels(), pytest.fail).create_plugin("x", fields, None)
    assert again.options == plugin.options == SelectionOptions(3, 4, 2.5, "raw", "minmax")
    assert again.clone().options == plugin.options


def test_enqueue_hands_shapes_addresses_and_stream_to_the_kernels(rtx: Flavour) -> None:
    kernels = RecordingKernels()
    plugin = made_plugin(rtx, PruningSettings(), kernels)
    types = [rtx.trt.float16] * 4 + [rtx.trt.int32]
    dims = [(1, HEADS, SIZE)] + [(1, KV_HEADS, TOKENS, SIZE)] * 3 + [(1, TOKENS)]
    inputs = [SimpleNamespace(dims=d, type=t) for d, t in zip(dims, types, strict=True)]
    outputs = [SimpleNamespace(dims=(1, 12), type=rtx.trt.int64)]
    plugin.enqueue(inputs, outputs, [11, 12, 13, 14, 15], [16], 17, 18)
    shape, options, addresses, granted, stream = kernels.calls[0]
    assert shape == SelectionShape(1, HEADS, KV_HEADS, TOKENS, SIZE, 12, "float16")
    assert options == SelectionOptions(2, 2, 5.0, "softmax", "none")
    assert addresses == SelectionAddresses(11, 12, 13, 14, 15, 16, 17)
    assert (granted, stream) == (4096, 18)
    plugin.enqueue(inputs, [SimpleNamespace(dims=(1, TOKENS + 1), type=rtx.trt.int64)], [1] * 5, [1], 1, 1)
    assert kernels.calls[1][0].num_kept == TOKENS + 1  # more than there are: for the kernels to refuse


def test_formats(rtx: Flavour) -> None:
    trt = rtx.trt
    plugin = made_plugin(rtx, PruningSettings(), RecordingKernels())

    def accepts(position: int, *types: Any, layout: Any = trt.TensorFormat.LINEAR) -> bool:
        tensors = [SimpleNamespace(desc=SimpleNamespace(type=t, format=layout)) for t in types]
        return plugin.supports_format_combination(position, tensors, 5)

    half = [trt.float16] * 4
    assert all(accepts(i, *half, trt.int32, trt.int64) for i in range(6))
    assert not accepts(0, trt.int32)
    assert not accepts(1, trt.float16, trt.float32)
    assert not accepts(4, *half, trt.bool)
    assert not accepts(5, *half, trt.int32, trt.int32)
    assert not accepts(0, *half, layout=trt.TensorFormat.CHW2)


def test_a_failing_kernel_is_reported(rtx: Flavour) -> None:
    reports: list[str] = []
    creator = make_creator(rtx.trt, RecordingKernels(), reports.append)
    made = made_plugin(rtx, PruningSettings(), RecordingKernels())
    plugin = creator.create_plugin("x", made.get_fields_to_serialize(), None)
    with pytest.raises(ValueError, match="unpack"):
        two = SimpleNamespace(dims=(1, 2), type=rtx.trt.float16)
        plugin.enqueue([two] * 5, [two], [], [], 0, 0)
    assert reports


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": "mean"}, "heads must be one of softmax, raw"),
        ({"chunk": 0}, "out of range"),
        ({"penalty": float("inf")}, "out of range"),
    ],
)
def test_attributes_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        options_from_fields({**PruningSettings().selection(), **change})


def test_missing_attributes_are_named() -> None:
    with pytest.raises(BackendError, match="lacks the attributes chunk, duplication_norm"):
        options_from_fields({name: 1 for name in FIELDS if name not in ("chunk", "duplication_norm")})


def made_plugin(rtx: Flavour, settings: PruningSettings, kernels: Any) -> Any:
    """A plugin as the parser would make it: whole numbers come as int64 there."""
    trt = rtx.trt
    values = settings.selection()
    arrays = [  # the fields point into these
        np.frombuffer(value.encode(), np.int8) if isinstance(value, str) else np.array([value])
        for value in values.values()
    ]
    kinds = {
        "int8": trt.PluginFieldType.CHAR,
        "int64": trt.PluginFieldType.INT64,
        "float64": trt.PluginFieldType.FLOAT64,
    }
    fields = [trt.PluginField(n, array, kinds[array.dtype.name]) for n, array in zip(values, arrays, strict=True)]
    return make_creator(trt, kernels, pytest.fail).create_plugin("x", trt.PluginFieldCollection(fields), None)
