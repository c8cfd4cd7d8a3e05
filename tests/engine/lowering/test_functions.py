"""The pruning op as a plugin's node: bodies go, and what TensorRT would not find is refused."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from iwp_export.engine.lowering.lower import IS_VISUAL, PreparePlugins, plugin_nodes
from iwp_export.errors import BackendError


@pytest.fixture
def decoder(tiny_bundle: Path) -> ir.Model:
    return ir.load(tiny_bundle / "decoder.onnx")


def test_bodies_go_and_the_node_stays(decoder: ir.Model) -> None:
    assert decoder.functions
    assert PreparePlugins()(decoder).modified
    assert not decoder.functions
    assert len(plugin_nodes(decoder)) == 1


def test_the_plugin_gets_whole_numbers_for_flags(decoder: ir.Model) -> None:
    node = plugin_nodes(decoder)[0]
    flags = node.inputs[IS_VISUAL]
    assert flags is not None and flags.dtype == ir.DataType.BOOL
    PreparePlugins()(decoder)
    given = node.inputs[IS_VISUAL]
    assert given is not None and given.dtype == ir.DataType.INT32 and given.shape == flags.shape
    cast = given.producer()
    assert cast is not None and (cast.op_type, list(cast.inputs)) == ("Cast", [flags])
    assert list(decoder.graph).index(cast) < list(decoder.graph).index(node)


@pytest.mark.parametrize("name", ["plugin_namespace", "plugin_version", "tensorrt_plugin_shape_input_indices"])
def test_a_missing_attribute_is_refused(decoder: ir.Model, name: str) -> None:
    del plugin_nodes(decoder)[0].attributes[name]
    with pytest.raises(BackendError, match=f"{name} is"):
        PreparePlugins()(decoder)


def test_an_op_inside_another_is_refused(decoder: ir.Model) -> None:
    body = ir.Graph([], [], nodes=[ir.node("SelectTokens", [], domain="iwp")])
    decoder.graph.append(ir.node("Loop", [], {"body": body}))
    with pytest.raises(BackendError, match="not a SelectTokens at the top level"):
        PreparePlugins()(decoder)


def test_a_scalar_num_kept_is_refused(decoder: ir.Model) -> None:
    next(value for value in decoder.graph.inputs if value.name == "num_kept").shape = ir.Shape([])
    with pytest.raises(BackendError, match=r"num_kept is not a tensor of shape \[1\]"):
        PreparePlugins()(decoder)
