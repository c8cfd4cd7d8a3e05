"""The scan of a graph's external files, held against the onnx package."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from iwp_export.bundle.schema import Flaw
from iwp_export.bundle.verify import MESSAGES, external_locations


def external(location: str) -> TensorProto:
    tensor = TensorProto(name=f"t {location}", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(*nodes: Any, initializer: Any = ()) -> Any:
    return helper.make_graph(list(nodes), "g", [], [], initializer=list(initializer))


def node(**attributes: Any) -> Any:
    return helper.make_node("Constant", [], ["x"], **attributes)


def sparse(values: str, indices: str) -> Any:
    tensor = onnx.SparseTensorProto(dims=[1])
    tensor.values.CopyFrom(external(values))
    tensor.indices.CopyFrom(external(indices))
    return tensor


def everywhere() -> Any:
    """A model with an external tensor in each place that the format has."""
    inner = graph(node(value=external("subgraph attribute")), initializer=[external("subgraph initializer")])
    nodes = [
        node(value=external("attribute")),
        node(values=[external("attribute 1"), external("attribute 2")]),
        node(body=inner),
        node(bodies=[graph(node(body=graph(initializer=[external("deep")])))]),
        node(sparse_value=sparse("sparse values", "sparse indices")),
        node(sparse_values=[sparse("more sparse values", "more sparse indices")]),
    ]
    main = graph(*nodes, initializer=[external("initializer")])
    main.sparse_initializer.append(sparse("sparse initializer", "its indices"))
    model = helper.make_model(main)
    function = helper.make_function("d", "f", [], [], [node(value=external("function"))], [])
    function.attribute_proto.append(helper.make_attribute("default", external("function's default")))
    model.functions.append(function)
    training = model.training_info.add()
    training.initialization.CopyFrom(graph(initializer=[external("training")]))
    training.algorithm.CopyFrom(graph(initializer=[external("training step")]))
    return model


def written(path: Path, content: Any) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def all_tensors(message: Any) -> list[Any]:
    """Every TensorProto in a message, by protobuf's own reflection."""
    if isinstance(message, TensorProto):
        return [message]
    found = []
    for field, value in message.ListFields():
        if field.message_type:
            values = [value] if hasattr(value, "ListFields") else value
            found += [tensor for inner in values for tensor in all_tensors(inner)]
    return found


def test_every_place_is_seen(tmp_path: Path) -> None:
    model = everywhere()
    expected = {e.value for tensor in all_tensors(model) for e in tensor.external_data if e.key == "location"}
    assert len(expected) == 17
    assert external_locations(written(tmp_path / "m.onnx", model)) == expected


def test_the_table_has_every_field_that_leads_to_a_tensor() -> None:
    """If a version of ONNX gives tensors a new place, this fails."""
    children: dict[str, dict[int, str]] = {}

    def collect(message: Any) -> None:
        if message.name not in children:
            inner = [field for field in message.fields if field.message_type]
            children[message.name] = {field.number: field.message_type.name for field in inner}
            for field in inner:
                collect(field.message_type)

    collect(onnx.ModelProto.DESCRIPTOR)
    leading = {"TensorProto"}
    while more := {name for name, fields in children.items() if leading & set(fields.values())} - leading:
        leading |= more
    expected = {
        name.removesuffix("Proto"): {
            n: kind.removesuffix("Proto") for n, kind in children[name].items() if kind in leading
        }
        for name in leading - {"TensorProto"}
    }
    assert {name: fields for name, fields in MESSAGES.items() if name not in ("Tensor", "Entry")} == expected
    number = TensorProto.DESCRIPTOR.fields_by_name["external_data"].number
    assert MESSAGES["Tensor"] == {number: "Entry"}


def test_an_exported_graph_reads_its_weights_alone(tiny_bundle: Path) -> None:
    for role in ("decoder", "vision"):
        assert external_locations(tiny_bundle / f"{role}.onnx") == {f"{role}.weights"}


def test_pieces_of_a_message_are_merged_as_protobuf_does(tmp_path: Path) -> None:
    first = helper.make_model(graph(initializer=[external("one")])).SerializeToString()
    second = helper.make_model(graph(initializer=[external("two")])).SerializeToString()
    merged = onnx.load_from_string(first + second)
    assert {t.external_data[1].value for t in merged.graph.initializer} == {"one", "two"}
    assert external_locations(written(tmp_path / "m.onnx", first + second)) == {"one", "two"}


def test_the_last_key_of_an_entry_counts(tmp_path: Path) -> None:
    entry = b"\x0a\x03abc\x12\x01x\x0a\x08location\x12\x06secret"
    tensor = b"\x6a" + bytes([len(entry)]) + entry
    content = b"\x3a" + bytes([len(tensor) + 2]) + b"\x2a" + bytes([len(tensor)]) + tensor
    assert onnx.load_from_string(content).graph.initializer[0].external_data[0].key == "location"
    assert external_locations(written(tmp_path / "m.onnx", content)) == {"secret"}


def test_unknown_fields_and_longer_numbers_are_skipped(tmp_path: Path) -> None:
    graph_bytes = helper.make_model(graph(initializer=[external("one")])).graph.SerializeToString()
    long_tag = b"\xba\x80\x00" + bytes([len(graph_bytes) | 0x80, 0x80, 0x00])  # field 7, with zeros behind
    content = b"\x98\x06\x05" + b"\x9d\x06abcd" + b"\x99\x06abcdefgh" + long_tag + graph_bytes
    assert len(graph_bytes) < 128
    assert len(onnx.load_from_string(content).graph.initializer) == 1
    assert external_locations(written(tmp_path / "m.onnx", content)) == {"one"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"weights",
        b"\x3a",
        b"\x3a\x05ab",
        b"\x00\x00",
        b"\x3b\x3c",  # a group
        b"\xff" * 20,
        b"\xba\x80\x80\x80\x10\x00",  # field 7 once 32 bits are taken of it
        b"\x3a\x02\x2a\x05abcde",  # a tensor that ends behind its graph
        b"\x3a\x03\x2a\x01\x6a",
        b"ORTM" * 10,
    ],
)
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(Flaw, match=r"m\.onnx is not an ONNX graph"):
        external_locations(written(tmp_path / "m.onnx", content))


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    content = everywhere().SerializeToString().replace(b"initializer", b"initializ\xff\xff")
    with pytest.raises(Flaw, match="not an ONNX graph"):
        external_locations(written(tmp_path / "m.onnx", content))


def test_a_compiled_model_from_a_file_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("EPContext", [], [], domain="com.microsoft", embed_mode=0, ep_cache_context="/etc/x")
    with pytest.raises(Flaw, match="EPContext"):
        external_locations(written(tmp_path / "m.onnx", helper.make_model(graph(node))))


def test_deep_subgraphs_do_not_end_the_process(tmp_path: Path) -> None:
    content = b""
    for _ in range(3000):
        attribute = b"\x32" + varint(len(content)) + content
        in_node = b"\x2a" + varint(len(attribute)) + attribute
        content = b"\x0a" + varint(len(in_node)) + in_node
    assert external_locations(written(tmp_path / "m.onnx", b"\x3a" + varint(len(content)) + content)) == set()


def varint(value: int) -> bytes:
    data = b""
    while value >= 128:
        data, value = data + bytes([value & 127 | 128]), value >> 7
    return data + bytes([value])


def test_whatever_onnx_reads_of_a_damaged_graph_is_seen(tmp_path: Path) -> None:
    """Bytes changed at random: the scan refuses, or finds at least the files that onnx would read."""
    rng = random.Random(0)
    original = everywhere().SerializeToString()
    seen = 0
    for _ in range(3000):
        content = bytearray(original)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            model = onnx.load_from_string(bytes(content))
        except Exception:
            continue
        entries = (e for tensor in all_tensors(model) for e in tensor.external_data)
        expected = {entry.value for entry in entries if entry.key == "location"}
        try:
            found = external_locations(written(tmp_path / "m.onnx", bytes(content)))
        except Flaw:
            continue
        assert found >= expected
        seen += 1
    assert seen > 300
