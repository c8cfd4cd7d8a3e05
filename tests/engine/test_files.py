"""Engines on disk: they appear whole or not at all, and replace nothing that is not an engine's."""

from __future__ import annotations

import errno
import hashlib
import json
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iwp_export.bundle import document, staging
from iwp_export.device.gpu import Gpu
from iwp_export.engine.files import EngineInfo, EnginePaths, EngineWriter, Fingerprint, read_engine, rebuild_command
from iwp_export.engine.profiles import EngineLimits
from iwp_export.errors import BundleError, OutputError
from tests.runtime.toy import toy_manifest

INFO = EngineInfo(
    Fingerprint("rtx", "1.7", ("86",), "1"), EngineLimits(256, 200, 1), 2, 0.3, "build x", toy_manifest(), {}
)


def write(path: Path, content: bytes = b"engine", force: bool = False, stop: bool = False) -> EngineInfo | None:
    with EngineWriter(path, force) as writer:
        stage(writer, content)
        return None if stop else writer.commit(INFO)


def stage(writer: EngineWriter, content: bytes = b"engine") -> None:
    for engine in (writer.paths.graph("decoder"), writer.paths.graph("vision")):
        writer.staged(engine).write_bytes(content)
    processor = writer.staged(writer.paths.processor)
    processor.mkdir()
    (processor / "tokenizer.json").write_text("{}")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    info = write(tmp_path / "a.plan")
    paths, found = read_engine(tmp_path / "a.plan", "full")
    assert found == info and found == replace(INFO, files=found.files)
    assert set(found.files) == {"a.plan", "a.vision.plan", "a.processor/tokenizer.json"}
    assert names(tmp_path) == ["a.json", "a.plan", "a.processor", "a.vision.plan"]
    assert paths.decoder == tmp_path / "a.plan"


def test_nothing_appears_without_a_commit(tmp_path: Path) -> None:
    write(tmp_path / "a.plan", stop=True)
    assert names(tmp_path) == []


def test_an_engine_is_replaced_only_by_force(tmp_path: Path) -> None:
    write(tmp_path / "a.plan")
    with pytest.raises(OutputError, match=r"exists\. Replace it"):
        write(tmp_path / "a.plan")
    write(tmp_path / "a.plan", b"newer", force=True)
    assert (tmp_path / "a.plan").read_bytes() == b"newer"
    read_engine(tmp_path / "a.plan")
    assert len(names(tmp_path)) == 4


def test_a_failed_replacement_leaves_the_old_engine(tmp_path: Path) -> None:
    write(tmp_path / "a.plan")
    write(tmp_path / "a.plan", b"newer", force=True, stop=True)
    assert (tmp_path / "a.plan").read_bytes() == b"engine"
    read_engine(tmp_path / "a.plan")


@pytest.mark.parametrize("name", ["a.json", "a.processor/thesis.tex", "a.plan", "a.vision.plan", "a.processor"])
def test_force_spares_what_is_not_an_engines(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("years")
    with pytest.raises(OutputError, match="is not an engine's"):
        write(tmp_path / "a.plan", force=True)
    assert file.read_text() == "years"


def test_what_a_killed_build_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".a.plan.partial-1-abcd"
    left.mkdir()
    (left / "decoder.weights").write_bytes(b"x")
    write(tmp_path / "a.plan")
    assert not left.exists()


@pytest.mark.parametrize("name", ["a", "a.onnx", ".plan", "a.vision.plan"])
def test_names_are_checked(name: str) -> None:
    with pytest.raises(OutputError):
        EnginePaths.of(name)


def edit_info(path: Path, **changes: object) -> None:
    """Change NAME.json as somebody would who knows of its digest."""
    file = EnginePaths.of(path).info
    data = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({**data, "digest": document._digest_of(data)}))


def add(path: Path, name: str, content: bytes) -> None:
    """Add a file to an engine and to its list."""
    file = path.parent / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    files = json.loads(EnginePaths.of(path).info.read_text())["files"]
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_info(path, files={**files, name: entry})


def rejection(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        read_engine(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["../secret.txt", "/etc/passwd", "a.processor/../x", "a\\b", ".hidden", "a.processor/.x"]
)
def test_names_in_the_list_stay_inside(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "engines"
    write(folder / "a.plan")
    (tmp_path / "secret.txt").write_text("secret")
    entry = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    files = json.loads((folder / "a.json").read_text())["files"]
    edit_info(folder / "a.plan", files={**files, name: entry})
    assert "must be a name inside of the folder" in rejection(folder / "a.plan")


def test_a_file_beside_the_engine_is_no_part_of_it(tmp_path: Path) -> None:
    write(tmp_path / "a.plan")
    add(tmp_path / "a.plan", "other.txt", b"x")
    assert "other.txt" in rejection(tmp_path / "a.plan")


def test_the_processors_folder_holds_what_is_listed_and_no_more(tmp_path: Path) -> None:
    write(tmp_path / "a.plan")
    write(tmp_path / "b.plan")  # another engine beside it is no matter
    (tmp_path / "a.processor" / ".DS_Store").write_text("")
    read_engine(tmp_path / "a.plan")
    (tmp_path / "a.processor" / "config.json").write_text("{}")
    assert "a.processor/config.json does not belong to it" in rejection(tmp_path / "a.plan")


@pytest.mark.parametrize("name", ["a.plan", "a.json", "a.processor", "a.processor/tokenizer.json"])
def test_links_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "engines"
    write(folder / "a.plan")
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    assert f"{name} is a link" in rejection(folder / "a.plan")
    with pytest.raises(OutputError, match=r"is a link|is not an engine's"):
        write(folder / "a.plan", force=True)
    assert (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.processor/processing_x.py", b"", "can hold code"),
        ("a.processor/x.bin", b"", "can hold code"),
        ("a.processor/config.json", b'{"x": [{"auto_map": {"AutoConfig": "evil.E"}}]}', "has auto_map"),
    ],
)
def test_an_engine_is_data(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write(tmp_path / "a.plan")
    add(tmp_path / "a.plan", name, content)
    assert f"{name} {message}" in rejection(tmp_path / "a.plan")
    with pytest.raises(OutputError, match=message), EngineWriter(tmp_path / "b.plan") as writer:
        stage(writer)
        (writer.folder / name.replace("a.", "b.")).write_bytes(content)
        writer.commit(INFO)
    assert names(tmp_path) == ["a.json", "a.plan", "a.processor", "a.vision.plan"]


def test_a_list_of_another_engine_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.plan")
    for path in EnginePaths.of(tmp_path / "a.plan").all:
        path.rename(path.with_name(path.name.replace("a.", "b.")))
    assert "b.json does not list b.plan, it is another engine's" in rejection(tmp_path / "b.plan")


def test_a_description_changed_by_hand_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.plan")
    file = tmp_path / "a.json"
    file.write_text(file.read_text().replace('"max_context": 256', '"max_context": 512'))
    assert "a.json was changed by hand or damaged" in rejection(tmp_path / "a.plan")
    with pytest.raises(OutputError, match="is not an engine's"):
        write(tmp_path / "a.plan", force=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"profiles": 3}, "profiles is 3, must be a whole number from 1 to 2"),
        ({"profiles": "1"}, "profiles is '1'"),
        ({"keep": 0}, "keep is 0.0, must be a number above 0 and at most 1"),
        ({"keep": True}, "keep is True"),
        ({"limits": {"max_context": 256, "max_prompt": 0, "max_images": 1}}, "limits.max_prompt is 0"),
        ({"limits": {"max_context": 2**31, "max_prompt": 1, "max_images": 1}}, "limits.max_context is 2147483648"),
        ({"limits": {"max_context": 1}}, "limits.max_prompt is missing"),
        ({"source": "build 'x"}, 'source is "build \'x"'),
        ({"manifest": {}}, "manifest.model is missing"),
        ({"extra": 1}, "extra is unknown"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(tmp_path / "a.plan")
    edit_info(tmp_path / "a.plan", **change)
    assert message in rejection(tmp_path / "a.plan")


@pytest.mark.parametrize(("name", "value"), [("flavour", "cuda"), ("sms", "86"), ("sms", ["8;6"]), ("version", 1.7)])
def test_a_wrong_fingerprint_is_named(tmp_path: Path, name: str, value: object) -> None:
    write(tmp_path / "a.plan")
    fingerprint = json.loads((tmp_path / "a.json").read_text())["fingerprint"]
    edit_info(tmp_path / "a.plan", fingerprint={**fingerprint, name: value})
    assert f"fingerprint.{name}" in rejection(tmp_path / "a.plan")


def test_a_wrong_value_in_the_bundles_manifest_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.plan")
    manifest = json.loads((tmp_path / "a.json").read_text())["manifest"]
    manifest["decoder"]["layers"] = 0
    edit_info(tmp_path / "a.plan", manifest=manifest)
    assert "manifest.decoder.layers is 0" in rejection(tmp_path / "a.plan")


def test_an_older_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    write(path)
    data = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({**data, "schema_version": 3}))
    assert rejection(path).endswith("schema version 3, this version reads 4: build the engine again")


def test_an_older_version_is_replaced_by_force(tmp_path: Path) -> None:
    write(tmp_path / "a.plan")
    data = json.loads((tmp_path / "a.json").read_text())
    del data["digest"]
    (tmp_path / "a.json").write_text(json.dumps({**data, "schema_version": 1}))
    write(tmp_path / "a.plan", b"newer", force=True)
    read_engine(tmp_path / "a.plan")


def test_a_command_is_quoted_anew() -> None:
    info = replace(INFO, source="build 'x y' ; rm -rf '~'")
    command = rebuild_command(EnginePaths.of("a.plan"), info, Gpu("RTX 4090", "89", 13))
    assert command.startswith("iwp-export build 'x y' ';' rm -rf '~' -o a.plan --target rtx --sm 89 ")


@pytest.mark.parametrize("name", ["a.processor/.git/HEAD", "a.processor/empty/x"])
def test_force_deletes_nothing_that_a_build_did_not_write(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.plan")
    (tmp_path / name).parent.mkdir()
    if not name.endswith("x"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=r"a\.processor/(\.git|empty) is not an engine's"):
        write(tmp_path / "a.plan", force=True)
    assert (tmp_path / name).parent.exists()
    read_engine(tmp_path / "a.plan")


def test_an_engine_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"limits\.max_images is 0"), EngineWriter(tmp_path / "a.plan") as writer:
        stage(writer)
        writer.commit(replace(INFO, limits=EngineLimits(256, 200, 0)))
    with (
        pytest.raises(OutputError, match=r"lists nothing in b\.processor"),
        EngineWriter(tmp_path / "b.plan") as writer,
    ):
        stage(writer)
        (writer.folder / "b.processor" / "tokenizer.json").unlink()
        writer.commit(INFO)
    assert names(tmp_path) == []


def test_a_full_disk_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, EngineWriter(tmp_path / "a.plan") as writer:
        writer.staged(writer.paths.decoder).symlink_to("/dev/full")
        writer.staged(writer.paths.decoder).write_bytes(b"engine")
    assert str(caught.value) == f"Cannot write {tmp_path / 'a.plan'}: the disk is full"
    assert names(tmp_path) == []


@pytest.mark.parametrize("failing", ["a.processor", "a.vision.plan", "a.plan", "a.json"])
def test_a_failed_move_leaves_the_old_engine(tmp_path: Path, monkeypatch: Any, failing: str) -> None:
    path = tmp_path / "a.plan"
    write(path)
    move = staging._move

    def fail(source: Path, target: Path) -> None:
        if target == tmp_path / failing and source.name != "replaced.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        move(source, target)

    monkeypatch.setattr(staging, "_move", fail)
    with pytest.raises(OutputError, match="the disk is full"):
        write(path, b"newer", force=True)
    monkeypatch.undo()
    read_engine(path, "full")
    assert path.read_bytes() == b"engine" and len(names(tmp_path)) == 4


@pytest.mark.parametrize(
    ("replacing", "moves"),
    [
        pytest.param(replacing, moves, marks=[] if moves == 2 else pytest.mark.slow)
        for replacing in (True, False)
        for moves in range(6)
    ],
)
def test_a_build_killed_between_two_moves_leaves_what_force_replaces(
    tmp_path: Path, moves: int, replacing: bool
) -> None:
    """A process that is killed moves some files: the engine is then whole or none, and the next build works."""
    path = tmp_path / "a.plan"
    if replacing:
        write(path)
    code = textwrap.dedent("""
        import os, signal, sys
        sys.path[:0] = [os.getcwd()]
        from pathlib import Path
        from iwp_export.bundle import staging
        from tests.engine.test_files import write
        move, left = staging._move, int(sys.argv[2])
        def count(source, target):
            global left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            move(source, target)
        staging._move = count
        write(Path(sys.argv[1]), b"newer", force=True)
    """)
    code_of_exit = subprocess.run([sys.executable, "-c", code, str(path), str(moves)]).returncode
    killed = moves < (5 if replacing else 4)
    assert code_of_exit == (-signal.SIGKILL if killed else 0)
    if not killed or (replacing and moves == 0):
        read_engine(path, "full")
    else:
        with pytest.raises(BundleError):
            read_engine(path)
    write(path, b"third!", force=True)
    read_engine(path, "full")
    assert path.read_bytes() == b"third!" and len(names(tmp_path)) == 4
