"""The plugin in Python: what a graph gives it, what it asks of the kernels, and that TensorRT-RTX really calls it."""

from __future__ import annotations

import struct
from collections.abc import Callable
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
from iwp_export.engine.plugin import ATTRIBUTES, FIELDS, make_creator, options_from_fields
from iwp_export.errors import BackendError
from iwp_export.pruning.onnx_function import VERSION, node_attributes
from iwp_export.pruning.settings import PruningSettings

KV_HEADS, SIZE, TOKENS = 2, 16, 40
LONGEST = 5000


@dataclass
class RecordingKernels:
    """Says as many bytes as there are tokens, and remembers what it was asked."""

    sizes: list[SelectionShape] = field(default_factory=list)
    calls: list[tuple[SelectionShape, SelectionOptions, SelectionAddresses, int, int]] = field(default_factory=list)

    def workspace_bytes(self, shape: SelectionShape, options: SelectionOptions) -> int:
        self.sizes.append(shape)
        return shape.tokens

    def enqueue(self, *call: Any) -> None:
        self.calls.append(call)


def node_graph(path: Path, settings: PruningSettings, dtype: int = TensorProto.FLOAT16) -> Path:
    """A graph of the op alone, all lengths dynamic."""
    inputs = [helper.make_tensor_value_info("importance", TensorProto.FLOAT, [1, "tokens"])]
    for name in ("key", "value"):
        inputs.append(helper.make_tensor_value_info(name, dtype, [1, KV_HEADS, "tokens", SIZE]))
    inputs.append(helper.make_tensor_value_info("is_visual", TensorProto.INT32, [1, "tokens"]))
    inputs.append(helper.make_tensor_value_info("num_kept", TensorProto.INT64, [1]))
    names = [value.name for value in inputs]
    node = helper.make_node("SelectTokens", names, ["kept_index"], domain="iwp", **node_attributes(settings))
    output = helper.make_tensor_value_info("kept_index", TensorProto.INT64, [1, "kept"])
    graph = helper.make_graph([node], "graph", inputs, [output])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("iwp", VERSION)]
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
    for name in ("key", "value"):
        profile.set_shape(name, *[(1, KV_HEADS, n, SIZE) for n in (1, TOKENS, LONGEST)])
    for name in ("importance", "is_visual"):
        profile.set_shape(name, *[(1, n) for n in (1, TOKENS, LONGEST)])
    profile.set_shape_input("num_kept", [1], [10], [2 * LONGEST])
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
    engine = build(rtx, node_graph(tmp_path / "node.onnx", PruningSettings(), dtype), kernels, reports)
    assert not reports
    assert set(kernels.sizes) == {SelectionShape(1, KV_HEADS, LONGEST, SIZE, LONGEST, name)}
    stored = bytes(engine)
    place = stored.index(b"workspace")
    assert struct.pack("<q", LONGEST) in stored[place : place + 100]


def test_unknown_variants_fail_the_parse_with_a_reason(rtx: Flavour, tmp_path: Path) -> None:
    reports: list[str] = []
    path = node_graph(tmp_path / "node.onnx", PruningSettings())
    model = onnx.load(path)
    (attribute,) = (a for a in model.graph.node[0].attribute if a.name == "similarity")
    attribute.s = b"hidden"
    onnx.save(model, path)
    assert not parse(rtx, path, RecordingKernels(), reports)[0]
    assert reports == ["similarity must be one of dual_weight, value, key, kernel, the SelectTokens node has 'hidden'"]


def test_sizes_that_the_kernels_refuse_fail_the_build(rtx: Flavour, tmp_path: Path) -> None:
    kernels, reports = SimpleNamespace(workspace_bytes=lambda shape, options: 0), []  # type: ignore[var-annotated]
    with pytest.raises(AssertionError):
        build(rtx, node_graph(tmp_path / "node.onnx", PruningSettings()), kernels, reports)
    assert (
        "the CUDA kernels take up to 1048576 tokens and 4096 heads; the engine is to take SelectionShape(batch=1"
        in reports[0]
    )


def test_fields_of_an_engine_are_those_of_the_graph_and_its_scratch_memory(rtx: Flavour) -> None:
    settings = PruningSettings(
        chunk=3, growth=4, penalty=2.5, similarity="key", duplication_norm="minmax", select="coverage"
    )
    plugin = made_plugin(rtx, settings, RecordingKernels())
    plugin.configure_plugin(*profile_of(rtx, TOKENS))
    plugin.configure_plugin(*profile_of(rtx, TOKENS - 1))
    fields = plugin.get_fields_to_serialize()
    assert [entry.name for entry in fields] == list(FIELDS)
    again = loaded_plugin(rtx, fields, RecordingKernels())
    assert again.options == plugin.options == SelectionOptions(3, 4, 2.5, "key", "minmax", "coverage")
    assert again.workspace == plugin.workspace == TOKENS
    for copy in (again.clone(), again.attach_to_context(None)):
        assert (copy.options, copy.workspace) == (plugin.options, TOKENS)


def test_an_engine_that_does_not_tell_its_scratch_memory_is_refused(rtx: Flavour) -> None:
    reports: list[str] = []
    never_configured = made_plugin(rtx, PruningSettings(), RecordingKernels())
    fields = never_configured.get_fields_to_serialize()
    assert loaded_plugin(rtx, fields, RecordingKernels(), reports.append) is None
    assert reports == ["the engine does not say how much scratch memory SelectTokens has; build it again"]


def test_enqueue_hands_shapes_addresses_and_scratch_memory_to_the_kernels(rtx: Flavour) -> None:
    kernels = RecordingKernels()
    plugin = made_plugin(rtx, PruningSettings(), kernels)
    plugin.configure_plugin(*profile_of(rtx, LONGEST))
    inputs, outputs = call_of(rtx, TOKENS, 12)
    plugin.enqueue(inputs, outputs, [11, 12, 13, 14], [15], 16, 17)
    shape, options, addresses, granted, stream = kernels.calls[0]
    assert shape == SelectionShape(1, KV_HEADS, TOKENS, SIZE, 12, "float16")
    assert options == SelectionOptions(2, 2, 5.0, "dual_weight", "none", "mmr")
    assert addresses == SelectionAddresses(11, 12, 13, 14, 15, 16)
    assert (granted, stream) == (LONGEST, 17)  # what the engine reserves, not what this call needs
    plugin.enqueue(*call_of(rtx, TOKENS, TOKENS + 1), [1] * 4, [1], 1, 1)
    assert kernels.calls[1][0].num_kept == TOKENS + 1  # more than there are: for the kernels to refuse


@pytest.mark.parametrize(("place", "dims"), [(0, (1, TOKENS - 1)), (2, (1, KV_HEADS, TOKENS, 8)), (3, (2, TOKENS))])
def test_enqueue_refuses_inputs_of_other_sizes(rtx: Flavour, place: int, dims: tuple[int, ...]) -> None:
    reports: list[str] = []
    made = made_plugin(rtx, PruningSettings(), RecordingKernels())
    made.configure_plugin(*profile_of(rtx, LONGEST))
    plugin = loaded_plugin(rtx, made.get_fields_to_serialize(), RecordingKernels(), reports.append)
    inputs, outputs = call_of(rtx, TOKENS, 12)
    inputs[place].dims = dims
    with pytest.raises(BackendError):
        plugin.enqueue(inputs, outputs, [1] * 4, [1], 1, 1)
    assert reports


def test_formats(rtx: Flavour) -> None:
    trt = rtx.trt
    plugin = made_plugin(rtx, PruningSettings(), RecordingKernels())

    def accepts(position: int, *types: Any, layout: Any = trt.TensorFormat.LINEAR) -> bool:
        tensors = [SimpleNamespace(desc=SimpleNamespace(type=t, format=layout)) for t in types]
        return plugin.supports_format_combination(position, tensors, 4)

    states = [trt.float32, trt.float16, trt.float16]
    assert all(accepts(i, *states, trt.int32, trt.int64) for i in range(5))
    assert not accepts(0, trt.float16)
    assert not accepts(1, trt.float32, trt.int32)
    assert not accepts(2, trt.float32, trt.float16, trt.float32)
    assert not accepts(3, *states, trt.bool)
    assert not accepts(4, *states, trt.int32, trt.int32)
    assert not accepts(0, *states, layout=trt.TensorFormat.CHW2)


def test_a_failing_kernel_is_reported(rtx: Flavour) -> None:
    reports: list[str] = []
    made = made_plugin(rtx, PruningSettings(), RecordingKernels())
    made.configure_plugin(*profile_of(rtx, LONGEST))
    plugin = loaded_plugin(rtx, made.get_fields_to_serialize(), RecordingKernels(), reports.append)
    with pytest.raises(ValueError, match="unpack"):
        two = SimpleNamespace(dims=(1, 2), type=rtx.trt.float16)
        plugin.enqueue([two] * 4, [two], [], [], 0, 0)
    assert reports


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"similarity": "mean"}, "similarity must be one of dual_weight, value, key, kernel"),
        ({"select": "best"}, "select must be one of mmr, coverage"),
        ({"chunk": 0}, "out of range"),
        ({"penalty": float("inf")}, "out of range"),
    ],
)
def test_attributes_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        options_from_fields({**PruningSettings().selection(), **change})


def test_missing_attributes_are_named() -> None:
    with pytest.raises(BackendError, match="lacks the attributes chunk, duplication_norm"):
        options_from_fields({name: 1 for name in ATTRIBUTES if name not in ("chunk", "duplication_norm")})


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
    phase = trt.TensorRTPhase.BUILD
    return make_creator(trt, kernels, pytest.fail).create_plugin("x", trt.PluginFieldCollection(fields), phase)


def loaded_plugin(rtx: Flavour, fields: Any, kernels: Any, report: Callable[[str], None] = pytest.fail) -> Any:
    """A plugin of an engine with these fields."""
    return make_creator(rtx.trt, kernels, report).create_plugin("x", fields, rtx.trt.TensorRTPhase.RUNTIME)


def profile_of(rtx: Flavour, longest: int) -> tuple[list[Any], list[Any]]:
    """The plugin's inputs and outputs as an optimisation profile of up to `longest` tokens gives them."""
    inputs, outputs = call_of(rtx, longest, longest)
    return tuple([SimpleNamespace(desc=x, max=x.dims) for x in tensors] for tensors in (inputs, outputs))  # type: ignore[return-value]


def call_of(rtx: Flavour, tokens: int, num_kept: int) -> tuple[list[Any], list[Any]]:
    """The plugin's inputs and outputs as a call gives them."""
    trt = rtx.trt
    state = (1, KV_HEADS, tokens, SIZE)
    dims = [(1, tokens), state, state, (1, tokens), (1, num_kept)]
    types = [trt.float32, trt.float16, trt.float16, trt.int32, trt.int64]
    tensors = [SimpleNamespace(dims=d, type=t) for d, t in zip(dims, types, strict=True)]
    return tensors[:4], tensors[4:]
