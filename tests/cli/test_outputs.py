"""Every option that names a file to write, against every place where none may be written: one list, one rule."""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iwp_export.cli.main import VERBS, build_parser, main
from iwp_export.models import ALIASES

CODES = {"validate": 2, "bench": 2, "report": 2}
"""Exit codes of verbs with gates that could not run; of the others 1."""


@dataclass(frozen=True)
class Output:
    """An option that names what is written.

    Attributes:
        verb, dest: the verb, and the option's name in the parsed arguments.
        line: the command, with OUT where the output's name stands.
        ending: of a name that is taken.
        also: further files that are written beside OUT, by their names.
        read: files that the command reads and whose names end so.
    """

    verb: str
    dest: str
    line: str
    ending: str
    also: tuple[str, ...] = ()
    read: tuple[str, ...] = ()


ASKED = "--image photo.png --prompt x"
OUTPUTS = (
    Output("export", "output", "tiny-llava -o OUT", ".bundle"),
    Output("export", "output", "tiny-llava -o OUT --target rtx --sm 89", ".plan"),
    Output("build", "output", "build my.bundle -o OUT --target rtx --sm 89", ".plan"),
    Output(
        "calibrate",
        "output",
        "calibrate checkpoint --data asked.jsonl --samples 2 -o OUT",
        ".json",
        also=("OUT.html", "OUT.json.progress"),
        read=("checkpoint/config.json",),
    ),
    Output("run", "save_tokens", f"run my.bundle {ASKED} --save-tokens OUT", ".png", read=("photo.png",)),
    Output("validate", "output", "validate my.bundle --data asked.json -o OUT", ".json", read=("asked.json",)),
    Output("validate", "record", "validate my.bundle --data asked.jsonl --record OUT", ".npz"),
    Output("bench", "output", "bench my.bundle --data asked.json -o OUT", ".json", read=("asked.json",)),
    Output("report", "output", "report made.json -o OUT", ".html", read=()),
)
CACHES = (
    Output("export", "timing_cache", "tiny-llava -o new.plan --target rtx --sm 89 --timing-cache OUT", ".cache"),
    Output("build", "timing_cache", "build my.bundle -o new.plan --target rtx --sm 89 --timing-cache OUT", ".cache"),
)
"""Read if they are there, and written."""
READ = {
    ("build", "bundle"),
    ("run", "bundle"),
    ("run", "image"),
    ("calibrate", "data"),
    ("calibrate", "prompts"),
    ("validate", "artefacts"),
    ("validate", "data"),
    ("bench", "artefact"),
    ("bench", "images"),
    ("bench", "data"),
    ("report", "reports"),
    ("inspect", "path"),
    ("build", "plugin"),
    ("export", "plugin"),
}
"""Options that name what is read."""


def paths_of(verb: str) -> Iterator[argparse.Action]:
    """The options of a verb that are paths."""
    module: Any = importlib.import_module(f"iwp_export.cli.{verb}")
    parser = build_parser(module, verb)
    return (action for action in parser._actions if action.type is Path)


def test_every_path_is_an_input_or_an_output() -> None:
    """A new option stands in one of the two lists, and so meets the rule."""
    found = {(verb, action.dest) for verb in VERBS for action in paths_of(verb)}
    written = {(each.verb, each.dest) for each in (*OUTPUTS, *CACHES)}
    assert written | READ == found


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> Path:
    """The current folder: inputs of all kinds, a bundle, what says it is an engine, links."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_bundle, "my.bundle")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)).save("photo.png")
    line = json.dumps({"image": "photo.png", "prompt": "what is it ?", "answer": "3"})
    for name in ("asked.json", "asked.jsonl"):
        Path(name).write_text(line)
    shutil.copytree(ALIASES["tiny-llava"], "checkpoint")
    Path("made.json").write_text("{}")
    Path("golden.npz").write_bytes(b"x")
    Path("robot.json").write_text('{"format": "iwp-plan"}')
    Path("elsewhere").write_text("mine")
    return tmp_path


def refused(desk: Path, output: Output, name: str, capsys: pytest.CaptureFixture[str], force: bool = True) -> str:
    """The one line that refuses an output, after which nothing has changed."""
    before = contents(desk)
    arguments = output.line.replace("OUT", name).split() + ["--force"] * force
    assert main(arguments) == CODES.get(output.verb, 1), name
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("iwp-export: error: ") and shown.out == ""
    assert contents(desk) == before
    return line


def contents(folder: Path) -> dict[Path, object]:
    """What is there."""
    return {
        path: path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture(params=(*OUTPUTS, *CACHES), ids=lambda output: f"{output.verb} {output.dest} {output.ending}")
def output(request: pytest.FixtureRequest) -> Output:
    """Each of them."""
    found: Output = request.param
    return found


def test_links(desk: Path, output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    for target in ("elsewhere", "nowhere", f"round{output.ending}"):
        for ending in (output.ending, *(name.removeprefix("OUT") for name in output.also)):
            link = Path(f"round{ending}")
            link.symlink_to(target)
            assert "link" in refused(desk, output, f"round{output.ending}", capsys)
            link.unlink()


def test_inside_an_artefact(desk: Path, output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("my.bundle/new", "my.bundle/processor/new", "robot.processor/new"):
        assert "which holds nothing but its own files" in refused(desk, output, f"{place}{output.ending}", capsys)


def test_inputs(desk: Path, output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    for name in output.read:
        assert "is read too" in refused(desk, output, name, capsys)


def test_what_is_there(desk: Path, output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    if output in CACHES:
        return
    for name in ("there" + output.ending, *(each.replace("OUT", "there") for each in output.also)):
        Path(name).write_text("mine")
        assert re.search("exists|is another file", refused(desk, output, f"there{output.ending}", capsys, force=False))
        Path(name).unlink()


def test_part_of_an_engine(desk: Path, output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    if output.ending in (".json", ".plan"):
        line = refused(desk, output, f"robot{output.ending}", capsys)
        assert re.search(r"is inside \S*robot\.plan|is not an engine's", line), line


def test_a_suffix_in_capitals(desk: Path) -> None:
    assert main(f"run my.bundle {ASKED} --max-new-tokens 1 --save-tokens NEW.PNG".split()) == 0
    assert Image.open("NEW.PNG").size


def test_drawings_of_several_images(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of them is checked, and one that is there is replaced by force, whole."""
    output = replace(OUTPUTS[4], line=f"{OUTPUTS[4].line} --image photo.png --max-new-tokens 1")
    Path("new-2.png").write_text("mine")
    assert "new-2.png: it already exists" in refused(desk, output, "new.png", capsys, force=False)
    assert main([*output.line.replace("OUT", "new.png").split(), "--force"]) == 0
    assert {path.name for path in desk.glob("new*")} == {"new-1.png", "new-2.png"}
    assert all(Image.open(path).size for path in desk.glob("new*"))


def test_a_full_disk_is_named_by_the_file(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    command = f"run my.bundle {ASKED} --max-new-tokens 1 --save-tokens new.png"
    assert main(command.split()) == 1
    assert capsys.readouterr().err.endswith("Cannot write new.png: the disk is full (--save-tokens)\n")
    assert not list(desk.glob("*new*")) and not list(desk.glob(".iwp*"))
