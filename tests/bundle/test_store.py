"""The store: whole bundles or none, nothing foreign deleted, every kind of damage named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from iwp_export.bundle import place, store
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
        decoder=DecoderInfo(8, 128, 4, 2, 32, 48, 256, "float32", 2, (3,), 0),
        vision=VisionInfo(4, 128, Bounds.fixed(64), {}, {"pixels": 112, "side": 8}),
        graphs={"decoder": graph("decoder"), "vision": graph("vision")},
    )


def fill(folder: Path, content: bytes = b"weights") -> None:
    for name in ("decoder.onnx", "decoder.onnx.data", "vision.onnx", "vision.onnx.data"):
        (folder / name).write_bytes(content)
    (folder / "processor").mkdir()
    (folder / "processor" / "tokenizer.json").write_text("{}")


def write(path: Path, *, force: bool = False, content: bytes = b"weights") -> Path:
    with BundleWriter(path, force) as writer:
        fill(writer.folder, content)
        writer.commit(make_manifest())
    return path


def edit_manifest(path: Path, **changes: object) -> None:
    file = path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def listing(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "x.bundle")
    bundle = Bundle.open(path, verify="full")
    assert bundle.manifest.files["processor/tokenizer.json"].bytes == 2
    assert bundle.manifest == Bundle.open(path).manifest
    assert bundle.path("decoder.onnx").read_bytes() == b"weights"
    assert bundle.path("processor").is_dir()
    assert listing(path.parent) == ["x.bundle"]
    with pytest.raises(BundleError, match="no file engine"):
        bundle.path("engine")


def test_existing_target_is_refused_at_the_door(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    with pytest.raises(OutputError, match=r"already exists\. Remove it, choose another -o, or pass --force"):
        BundleWriter(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OutputError, match="already exists"):
        BundleWriter(tmp_path / "empty")


def test_force_replaces_a_bundle_or_an_empty_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    write(path, force=True, content=b"others!")
    assert Bundle.open(path, verify="full").path("decoder.onnx").read_bytes() == b"others!"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", force=True)
    assert listing(tmp_path) == ["empty", "x"]


def test_force_keeps_the_old_bundle_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    with pytest.raises(RuntimeError, match="export broke"), BundleWriter(path, force=True) as writer:
        fill(writer.folder, b"newer!!")
        assert Bundle.open(path).path("decoder.onnx").read_bytes() == b"weights"
        raise RuntimeError("export broke")
    assert Bundle.open(path, verify="full").path("decoder.onnx").read_bytes() == b"weights"
    assert listing(tmp_path) == ["x"]


def test_force_works_without_an_atomic_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "_exchange", lambda one, other: False)
    path = write(tmp_path / "x")
    write(path, force=True, content=b"others!")
    assert Bundle.open(path, verify="full").path("decoder.onnx").read_bytes() == b"others!"
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


def test_link_to_a_bundle_stays_a_link(tmp_path: Path) -> None:
    real = write(tmp_path / "real")
    link = tmp_path / "link"
    link.symlink_to(real)
    write(link, force=True, content=b"others!")
    assert link.is_symlink() and Bundle.open(real).path("decoder.onnx").read_bytes() == b"others!"


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
    with pytest.raises(OutputError, match="Choose another -o"), BundleWriter(tmp_path / "file" / "x"):
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
    with pytest.raises(BundleError, match="damaged: its manifest"):
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
    monkeypatch.setattr(store, "QUICK_HASH_LIMIT", 5)
    (path / "decoder.onnx.data").write_bytes(b"Weights")
    Bundle.open(path)
    with pytest.raises(BundleError, match="changed"):
        Bundle.open(path, verify="full")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../b", "a\\..\\b", "C:x", "./x", ".hidden", "", "a//b"]
)
def test_file_names_stay_inside(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "x")
    files = json.loads((path / "manifest.json").read_text())["files"]
    edit_manifest(path, files={**files, name: {"bytes": 1, "sha256": "0"}})
    with pytest.raises(BundleError, match="outside of the bundle"):
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
        file.write_text(json.dumps(changed))
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
