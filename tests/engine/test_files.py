"""Engines on disk: they appear whole or not at all, and replace nothing that is not an engine's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from iwp_export.engine.files import EngineInfo, EnginePaths, Fingerprint, read_engine
from iwp_export.engine.profiles import EngineLimits
from iwp_export.engine.writer import EngineWriter
from iwp_export.errors import OutputError
from tests.runtime.toy import toy_manifest

INFO = EngineInfo(
    Fingerprint("rtx", "1.7", ("86",), "1"), EngineLimits(256, 200, 1), 2, 0.3, "build x", toy_manifest(), {}
)


def write(path: Path, content: bytes = b"engine", force: bool = False, stop: bool = False) -> EngineInfo | None:
    with EngineWriter(path, force) as writer:
        for engine in (writer.paths.decoder, writer.paths.vision):
            writer.staged(engine).write_bytes(content)
        processor = writer.staged(writer.paths.processor)
        processor.mkdir()
        (processor / "tokenizer.json").write_text("{}")
        return None if stop else writer.commit(INFO)


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
    with pytest.raises(OutputError, match=r"exists\. Give --force"):
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


@pytest.mark.parametrize("name", ["a.json", "a.processor/thesis.tex"])
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
