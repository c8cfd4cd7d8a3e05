"""The store: whole bundles or none, nothing foreign deleted, every kind of damage named."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iwp_export.bundle import document, staging, verify
from iwp_export.bundle.manifest import (
    Bounds,
    DecoderInfo,
    GraphSpec,
    Manifest,
    ModelInfo,
    TensorSpec,
    VisionInfo,
)
from iwp_export.bundle.store import Bundle, BundleWriter
from iwp_export.errors import BundleError, OutputError
from iwp_export.pruning.settings import PruningSettings


def make_manifest() -> Manifest:
    def graph(name: str) -> GraphSpec:
        tensors = (TensorSpec("x", "float32", (1, "n")),)
        return GraphSpec(f"{name}.onnx", f"{name}.onnx.data", 23, tensors, tensors)

    return Manifest(
        model=ModelInfo("tiny", "/x", "llava", "Llava"),
        pruning=PruningSettings(),
        decoder=DecoderInfo(8, 128, 256, 4, 2, 32, 48, 256, "float32", 2, (3,), 0),
        vision=VisionInfo(4, 128, Bounds.fixed(64), {}, {"pixels": 112, "side": 8}),
        graphs={"decoder": graph("decoder"), "vision": graph("vision")},
    )


GRAPH = b"\x3a\x00"
"""A ModelProto with an empty graph."""


def fill(folder: Path, content: bytes = b"weights") -> None:
    for role in ("decoder", "vision"):
        (folder / f"{role}.onnx").write_bytes(GRAPH)
        (folder / f"{role}.onnx.data").write_bytes(content)
    (folder / "processor").mkdir()
    (folder / "processor" / "tokenizer.json").write_text("{}")


def write(path: Path, *, force: bool = False, content: bytes = b"weights") -> Path:
    with BundleWriter(path, force) as writer:
        fill(writer.folder, content)
        writer.commit(make_manifest())
    return path


def edit_manifest(path: Path, **changes: object) -> None:
    """Change a manifest as somebody would who knows of its digest."""
    file = path / "manifest.json"
    data = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps(sealed(data)))


def sealed(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "digest": document._digest_of(data)}


def listing(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "x.bundle")
    bundle = Bundle.open(path, verify="full")
    assert bundle.manifest.files["processor/tokenizer.json"].bytes == 2
    assert bundle.manifest == Bundle.open(path).manifest
    assert bundle.path("decoder.onnx.data").read_bytes() == b"weights"
    assert bundle.path("processor").is_dir()
    assert listing(path.parent) == ["x.bundle"]
    with pytest.raises(BundleError, match="no file engine"):
        bundle.path("engine")


def test_existing_target_is_refused_at_the_door(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    with pytest.raises(OutputError, match=r"already exists.* or replace it"):
        BundleWriter(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OutputError, match="already exists"):
        BundleWriter(tmp_path / "empty")


def test_force_replaces_a_bundle_or_an_empty_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    write(path, force=True, content=b"others!")
    assert Bundle.open(path, verify="full").path("decoder.onnx.data").read_bytes() == b"others!"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", force=True)
    assert listing(tmp_path) == ["empty", "x"]


def test_force_keeps_the_old_bundle_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    with pytest.raises(RuntimeError, match="export broke"), BundleWriter(path, force=True) as writer:
        fill(writer.folder, b"newer!!")
        assert Bundle.open(path).path("decoder.onnx.data").read_bytes() == b"weights"
        raise RuntimeError("export broke")
    assert Bundle.open(path, verify="full").path("decoder.onnx.data").read_bytes() == b"weights"
    assert listing(tmp_path) == ["x"]


def test_force_works_without_an_atomic_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_exchange", lambda one, other: False)
    path = write(tmp_path / "x")
    write(path, force=True, content=b"others!")
    assert Bundle.open(path, verify="full").path("decoder.onnx.data").read_bytes() == b"others!"
    assert listing(tmp_path) == ["x"]


def test_force_never_deletes_what_is_not_a_bundle(tmp_path: Path) -> None:
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cup.jpg").write_bytes(b"x")
    with pytest.raises(OutputError, match="not a bundle"):
        BundleWriter(foreign, force=True)
    (foreign / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(OutputError, match="not a bundle"):
        BundleWriter(foreign, force=True)
    with pytest.raises(OutputError, match="it is a file"):
        BundleWriter(foreign / "cup.jpg", force=True)
    path = write(tmp_path / "x")
    (path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds notes\.txt"):
        BundleWriter(path, force=True)
    assert (foreign / "cup.jpg").exists() and (path / "notes.txt").exists()


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    real = write(tmp_path / "real")
    (tmp_path / "link").symlink_to(real)
    with pytest.raises(OutputError, match=r"link: it is a link, to .*real"):
        BundleWriter(tmp_path / "link", force=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path / "elsewhere")
    Bundle.open(write(tmp_path / "folder" / "x"))  # a folder on the way may be one


def test_no_bundle_inside_a_bundle(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    with pytest.raises(OutputError, match=r"it is inside .*x, which holds nothing but its own files"):
        BundleWriter(path / "y")
    Bundle.open(path)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), BundleWriter(tmp_path / "x") as writer:
        fill(writer.folder)
        raise error
    assert listing(tmp_path) == []


def test_commit_refuses_an_incomplete_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"'vision\.onnx' is missing"), BundleWriter(tmp_path / "x") as writer:
        fill(writer.folder)
        (writer.folder / "vision.onnx").unlink()
        writer.commit(make_manifest())
    with pytest.raises(OutputError, match="is a link"), BundleWriter(tmp_path / "x") as writer:
        fill(writer.folder)
        (writer.folder / "more").symlink_to(__file__)
        writer.commit(make_manifest())
    assert listing(tmp_path) == []


def test_target_that_appears_meanwhile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="already exists"), BundleWriter(tmp_path / "x") as writer:
        fill(writer.folder)
        (tmp_path / "x").mkdir()
        writer.commit(make_manifest())
    assert listing(tmp_path) == ["x"]


def test_unwritable_parent_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Choose another output"), BundleWriter(tmp_path / "file" / "x"):
        pass


def test_killed_export_leaves_no_bundle_and_the_next_one_clears_up(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import sys, time
        sys.path.insert(0, sys.argv[1])
        from pathlib import Path
        import test_store, iwp_export.bundle.store as store
        store.move_into_place = lambda *paths: (print("complete", flush=True), time.sleep(60))
        test_store.write(Path(sys.argv[2]))
    """)
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "x")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"complete\n"
    (staging,) = tmp_path.iterdir()
    write(tmp_path / "x")  # a live export of the same target is left alone
    assert staging.exists()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (staging / "manifest.json").exists()
    with pytest.raises(BundleError, match="unfinished bundle"):
        Bundle.open(staging)
    write(tmp_path / "x", force=True)
    assert listing(tmp_path) == ["x"]


def test_staging_name_is_no_target(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="unfinished"):
        BundleWriter(tmp_path / ".x.partial-1-ab")


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        Bundle.open(tmp_path / "nothing")
    with pytest.raises(BundleError, match="is a file"):
        Bundle.open(__file__)
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(BundleError, match="not an iwp-export bundle"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("text", ["", '{"format": "iwp-', "[" * 100_000, "\x00\x01", "\ud800"])
def test_damaged_json(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "x")
    (path / "manifest.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(BundleError, match=r"damaged: manifest\.json is not JSON"):
        Bundle.open(path)


def test_other_formats_and_versions(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    edit_manifest(path, schema_version=99)
    with pytest.raises(BundleError, match=r"schema version 99.*upgrade"):
        Bundle.open(path)
    edit_manifest(path, format="zip")
    with pytest.raises(BundleError, match="not an iwp-export bundle"):
        Bundle.open(path)


def test_file_damage_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    file = path / "vision.onnx.data"
    file.write_bytes(b"weight")
    with pytest.raises(BundleError, match=r"vision\.onnx\.data has 6 bytes, not 7"):
        Bundle.open(path)
    file.write_bytes(b"Weights")
    with pytest.raises(BundleError, match=r"content of vision\.onnx\.data changed"):
        Bundle.open(path)
    file.unlink()
    with pytest.raises(BundleError, match=r"vision\.onnx\.data is missing"):
        Bundle.open(path)


def test_extra_files_are_refused_but_hidden_ones_are_not(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    (path / ".DS_Store").write_text("")
    Bundle.open(path)
    (path / "processor" / "extra.json").write_text("")
    with pytest.raises(BundleError, match=r"processor/extra\.json does not belong"):
        Bundle.open(path)


def test_quick_verification_hashes_small_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x")
    monkeypatch.setattr(verify, "QUICK_HASH_LIMIT", 5)
    (path / "decoder.onnx.data").write_bytes(b"Weights")
    Bundle.open(path)
    with pytest.raises(BundleError, match="changed"):
        Bundle.open(path, verify="full")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../b", "a\\..\\b", "C:x", "./x", ".hidden", "", "a//b", "a/", "a/.b"]
)
def test_file_names_stay_inside(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "x")
    files = json.loads((path / "manifest.json").read_text())["files"]
    edit_manifest(path, files={**files, name: {"bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(BundleError, match="must be a name inside of the folder"):
        Bundle.open(path)


@pytest.mark.parametrize("value", [None, 5, [], {}, "text", ["a"], {"a": 1}, float("inf")])
def test_a_manifest_with_any_wrong_value_is_a_bundle_error(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path / "x")
    file = path / "manifest.json"
    original = json.loads(file.read_text())
    places: list[tuple[str, ...]] = [(key,) for key in original] + [
        (key, inner) for key in original if isinstance(original[key], dict) for inner in original[key]
    ]
    places += [("graphs", "decoder", key) for key in original["graphs"]["decoder"]]
    places += [("files", "decoder.onnx", key) for key in ("bytes", "sha256")]
    for where in places:
        changed = json.loads(json.dumps(original))
        parent = changed
        for key in where[:-1]:
            parent = parent[key]
        parent[where[-1]] = value
        file.write_text(json.dumps(sealed(changed)))
        try:
            Bundle.open(path)
        except BundleError as error:
            assert "\n" not in str(error)


def test_unreadable_bundle_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    (path / "vision.onnx").chmod(0)
    if os.access(path / "vision.onnx", os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.open(path)


def old_manifest(path: Path) -> None:
    """Make a bundle one of version 1, which had no digest."""
    data = json.loads((path / "manifest.json").read_text())
    data["model"]["source"] = "my models/llava;x"
    data["pruning"] |= {"stages": [{"layer": 3, "keep": 0.25}], "importance": "value", "query": "last"}
    del data["digest"]
    (path / "manifest.json").write_text(json.dumps({**data, "schema_version": 1}))


def test_an_older_version_is_refused_with_the_command(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    old_manifest(path)
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    command = "iwp-export 'my models/llava;x' --recipe paper --layer 3 --keep 0.25 --importance value --query last"
    command += f" --dtype float32 -o {path} --force"
    assert str(caught.value).endswith(f"schema version 1, this version reads 4: export it again: {command}")
    write(path, force=True)  # which that command does
    Bundle.open(path)


@pytest.mark.parametrize("broken", [{"model": 3}, {"pruning": {"stages": []}}, {"decoder": [], "pruning": None}])
def test_an_older_version_that_tells_little_is_refused_too(tmp_path: Path, broken: dict[str, Any]) -> None:
    file = write(tmp_path / "x") / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": 1, **broken}))
    with pytest.raises(BundleError, match=r"reads 4: export it again, with the settings in its manifest\.json$"):
        Bundle.open(tmp_path / "x")


def test_a_manifest_changed_by_hand_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "x") / "manifest.json"
    file.write_text(file.read_text().replace('"keep": 0.3', '"keep": 0.4'))
    with pytest.raises(BundleError, match="x was changed by hand or damaged: its digest differs"):
        Bundle.open(tmp_path / "x")


def test_a_manifest_in_another_layout_is_the_same(tmp_path: Path) -> None:
    file = write(tmp_path / "x") / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()), sort_keys=True))
    Bundle.open(tmp_path / "x")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("decoder", {"layers": 0}, r"decoder\.layers is 0, must be a whole number from 1 to 2,147,483,647"),
        ("decoder", {"layers": 4}, r"pruning\.layer is 4, the decoder has 4 layers"),
        ("decoder", {"heads": 3}, r"decoder: 3 heads cannot share 2 key/value heads"),
        ("decoder", {"vocab_size": 2**31}, r"decoder\.vocab_size is 2147483648"),
        ("decoder", {"max_positions": -1}, r"decoder\.max_positions is -1"),
        ("decoder", {"dtype": "int4"}, r"decoder\.dtype is 'int4', must be one of float32, float16, bfloat16"),
        ("decoder", {"eos_token_ids": [3, -1]}, r"decoder\.eos_token_ids\[1\] is -1"),
        ("decoder", {"eos_token_ids": "x"}, r"decoder\.eos_token_ids is 'x', must be a list"),
        ("decoder", {"bos_token_id": 2**40}, r"decoder\.bos_token_id is 1099511627776"),
        ("decoder", {"head_size": 3}, r"decoder\.head_size is unknown"),
        ("vision", {"image_token_id": -4}, r"vision\.image_token_id is -4"),
        ("pruning", {"penalty": True}, "pruning: penalty must be"),
        ("pruning", {"chunk": 2**31}, r"pruning\.chunk is 2147483648"),
        ("tools", {"torch": 2.1}, r"tools\.torch is 2\.1, must be text"),
        ("model", {"name": "\x1b[2J"}, "without control characters"),
        ("graphs", {"decoder": {}}, r"graphs\.decoder\.file is missing"),
    ],
)
def test_a_value_out_of_its_range_is_named(tmp_path: Path, part: str, change: Any, message: str) -> None:
    path = write(tmp_path / "x")
    data = json.loads((path / "manifest.json").read_text())[part]
    edit_manifest(path, **{part: {**data, **change}})
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "decoder.ort"}, "must end in .onnx"),
        ({"file": "../decoder.onnx"}, r"graphs\.decoder\.file is '\.\./decoder\.onnx', must be a name inside"),
        ({"weights": ".weights"}, r"graphs\.decoder\.weights is '\.weights'"),
        ({"weights": "processor/tokenizer.json"}, "not in the same folder"),
        ({"weights": "vision.onnx.data.2"}, "'vision.onnx.data.2' is missing"),
        ({"opset": 0}, r"graphs\.decoder\.opset is 0"),
    ],
)
def test_a_graph_that_lies_elsewhere_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "x")
    graphs = json.loads((path / "manifest.json").read_text())["graphs"]
    edit_manifest(path, graphs={**graphs, "decoder": {**graphs["decoder"], **change}})
    with pytest.raises(BundleError, match=message):
        Bundle.open(path)


def test_a_manifest_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    manifest = make_manifest()
    broken = replace(manifest, decoder=replace(manifest.decoder, vocab_size=0))
    with (
        pytest.raises(OutputError, match=r"Cannot write .*decoder\.vocab_size is 0"),
        BundleWriter(tmp_path / "x") as writer,
    ):
        fill(writer.folder)
        writer.commit(broken)
    assert listing(tmp_path) == []


def add(path: Path, name: str, content: str | bytes) -> None:
    """Add a file to a bundle and to its manifest, as somebody with bad intentions would."""
    content = content.encode() if isinstance(content, str) else content
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_bytes(content)
    files = json.loads((path / "manifest.json").read_text())["files"]
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(path, files={**files, name: entry})


def refused(tmp_path: Path, name: str, content: str | bytes) -> tuple[str, str]:
    """How a bundle with a certain file is refused: when it is written and when it is opened."""
    with pytest.raises(OutputError) as written, BundleWriter(tmp_path / "written") as writer:
        fill(writer.folder)
        (writer.folder / name).parent.mkdir(exist_ok=True)
        (writer.folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        writer.commit(make_manifest())
    path = write(tmp_path / "opened")
    add(path, name, content)
    with pytest.raises(BundleError) as opened:
        Bundle.open(path)
    return str(written.value), str(opened.value)


@pytest.mark.parametrize(
    "name",
    [
        "processor/processing_x.py",
        "processor/X.PY",
        "setup.py",
        "processor/__pycache__/x.cpython-311.pyc",
        "lib/libx.so",
        "lib/libx.so.1",
        "x.pyd",
        "pytorch_model.bin",
        "a.pt",
        "a.pkl",
        "a.py.json",
    ],
)
def test_code_is_no_part_of_a_bundle(tmp_path: Path, name: str) -> None:
    for message in refused(tmp_path, name, "{}"):
        assert f"{name} can hold code" in message


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "deep/x.JSON"])
@pytest.mark.parametrize(
    "text",
    [
        '{"auto_map": {"AutoProcessor": "x.P"}}',
        '{"a": [1, {"b": {"\\u0061uto_map": "x.P"}}]}',
        '[{"auto_map": []}]',
        '{"auto_map": "x.P", "auto_map": 3}',
    ],
)
def test_names_of_code_are_no_part_of_a_bundle(tmp_path: Path, name: str, text: str) -> None:
    for message in refused(tmp_path, f"processor/{name}", text):
        assert f"processor/{name} has auto_map" in message


@pytest.mark.parametrize("text", ["{", "\ud800", "[" * 100_000])
def test_a_processors_json_must_be_json(tmp_path: Path, text: str) -> None:
    for message in refused(tmp_path, "processor/config.json", text.encode(errors="surrogatepass")):
        assert "processor/config.json is not JSON" in message and "\n" not in message


def test_a_word_of_a_vocabulary_is_no_code(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    add(path, "processor/vocab.json", '{"auto_map": 17}')
    Bundle.open(path)


def graph_with(location: str) -> bytes:
    """An ONNX graph with one external tensor."""
    from onnx import TensorProto, helper

    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    model = helper.make_model(helper.make_graph([], "g", [], [], initializer=[tensor]))
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    "location", ["../../x", ".hidden", "/etc/passwd", "decoder.onnx.data", "./vision.onnx.data", ""]
)
def test_a_graph_reads_its_weights_alone(tmp_path: Path, location: str) -> None:
    for message in refused(tmp_path, "vision.onnx", graph_with(location)):
        assert f"the vision graph reads {location!r}, which is not its weights file 'vision.onnx.data'" in message


def test_a_graph_may_read_its_weights(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    add(path, "vision.onnx", graph_with("vision.onnx.data"))
    Bundle.open(path)


def test_a_graph_that_is_none_is_refused(tmp_path: Path) -> None:
    for message in refused(tmp_path, "vision.onnx", b"weights"):
        assert "vision.onnx is not an ONNX graph" in message


@pytest.mark.parametrize("name", ["decoder.onnx.data", "processor/tokenizer.json", "manifest.json", "processor"])
def test_a_link_is_no_part_of_a_bundle_even_to_the_right_content(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "x")
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=f"{name} is a link"):
        Bundle.open(path)
    with pytest.raises(OutputError, match=f"holds {name}, which is not part"):
        BundleWriter(path, force=True)
    assert (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", [".link", ".hidden/link", "broken"])
def test_other_links_are_refused_too(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "x")
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).symlink_to(tmp_path / "nothing")
    with pytest.raises(BundleError, match=f"{name} is a link"):
        Bundle.open(path)


def test_a_pipe_is_no_part_of_a_bundle(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    add(path, "processor/empty.txt", "")
    (path / "processor/empty.txt").unlink()
    os.mkfifo(path / "processor/empty.txt")
    with pytest.raises(BundleError, match=r"processor/empty\.txt is not a plain file"):  # and is not waited for
        Bundle.open(path)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        (".git/HEAD", ".git"),
        (".DS_Store", ".DS_Store"),
        ("processor/.notes", "processor/.notes"),
        ("empty/", "empty"),
        ("processor/mine/", "processor/mine"),
    ],
)
def test_force_deletes_nothing_that_an_export_did_not_write(tmp_path: Path, name: str, named: str) -> None:
    path = write(tmp_path / "x")
    mine = path / name
    (mine if name.endswith("/") else mine.parent).mkdir(exist_ok=True)
    if not name.endswith("/"):
        mine.write_text("mine")
    Bundle.open(path)
    with pytest.raises(OutputError, match=f"holds {named}, which is not part of the bundle"):
        BundleWriter(path, force=True)
    with pytest.raises(OutputError, match="Remove it yourself"):
        write(path, force=True)
    assert mine.exists()


def test_force_believes_no_manifest_that_was_changed(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    (path / "thesis.tex").write_text("years")
    file = path / "manifest.json"
    data = json.loads(file.read_text())
    data["files"]["thesis.tex"] = {"bytes": 5, "sha256": "0" * 64}
    file.write_text(json.dumps(data))
    with pytest.raises(OutputError, match="is not a bundle"):
        BundleWriter(path, force=True)
    assert (path / "thesis.tex").exists()


def test_a_file_that_appears_during_an_export_is_not_deleted(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    with pytest.raises(OutputError, match=r"holds \.git"), BundleWriter(path, force=True) as writer:
        fill(writer.folder)
        (path / ".git").mkdir()
        writer.commit(make_manifest())
    assert (path / ".git").exists()


def test_the_processor_is_copied_without_what_is_hidden(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    add(path, "processor/more/vocab.json", "{}")
    (path / "processor" / ".DS_Store").write_text("")
    Bundle.open(path).copy_processor(tmp_path / "copy")
    assert sorted(p.relative_to(tmp_path / "copy").as_posix() for p in (tmp_path / "copy").rglob("*")) == [
        "more",
        "more/vocab.json",
        "tokenizer.json",
    ]


def fill_the_disk(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FULL: list[Callable[[Path], Any]] = [
    fill_the_disk,
    lambda path: Path("/dev/full").write_bytes(b"x"),
    lambda path: np.zeros(1 << 20).tofile("/dev/full"),
    lambda path: shutil.copyfile(__file__, "/dev/full"),
]


@pytest.mark.parametrize("fail", FULL)
def test_a_full_disk_is_called_that(tmp_path: Path, fail: Callable[[Path], Any]) -> None:
    with pytest.raises(OutputError) as caught, BundleWriter(tmp_path / "x") as writer:
        fail(writer.folder)
    assert str(caught.value) == f"Cannot write {tmp_path / 'x'}: the disk is full"
    assert listing(tmp_path) == []


def test_a_full_disk_behind_another_error_is_called_that_too(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the disk is full"), BundleWriter(tmp_path / "x"):
        try:
            fill_the_disk(tmp_path)
        except OSError as error:
            raise RuntimeError("a thread failed") from error


@pytest.mark.parametrize("step", ["fsync", "mkdir"])
def test_a_disk_that_fills_up_later_is_called_that(tmp_path: Path, monkeypatch: Any, step: str) -> None:
    path = write(tmp_path / "x")
    owner = os if step == "fsync" else Path
    with pytest.raises(OutputError, match=rf"Cannot write {path}: the disk is full"):
        writer = BundleWriter(path, force=True)
        monkeypatch.setattr(owner, step, lambda *arguments, **options: fill_the_disk(path))
        with writer:
            monkeypatch.setattr(Path, "mkdir", mkdir)
            fill(writer.folder, b"newer!!")
            writer.commit(make_manifest())
    monkeypatch.undo()
    assert Bundle.open(path).path("decoder.onnx.data").read_bytes() == b"weights"


mkdir = Path.mkdir


def test_an_error_inside_that_is_no_full_disk_stays_itself(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), BundleWriter(tmp_path / "x"):
        (tmp_path / "nothing").read_bytes()


@pytest.mark.parametrize("swap", [True, False])
def test_a_failed_move_leaves_the_old_bundle(tmp_path: Path, monkeypatch: Any, swap: bool) -> None:
    path = write(tmp_path / "x")
    monkeypatch.setattr(staging, "fsync_folder", fail_for(tmp_path, staging.fsync_folder))
    if not swap:
        monkeypatch.setattr(staging, "_exchange", lambda one, other: False)
    with pytest.raises(OutputError, match="Cannot write"):
        write(path, force=True, content=b"others!")
    assert Bundle.open(path).path("decoder.onnx.data").read_bytes() == b"weights"
    assert listing(tmp_path) == ["x"]


def fail_for(folder: Path, function: Callable[[Path], None]) -> Callable[[Path], None]:
    def call(path: Path) -> None:
        if path == folder:
            raise OSError(errno.EIO, "Input/output error")
        function(path)

    return call
