"""Where a verb may write; what each option of each verb does is in tests/cli/test_outputs.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iwp_export.bundle.outputs import artefact_around, check_outputs
from iwp_export.errors import OutputError

BUNDLE = '{"format": "iwp-bundle"}'
ENGINE = '{"format": "iwp-plan"}'


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, now the current one: a file, a photo, a folder that is read, a bundle, an engine."""
    for folder in ("read", "my.bundle/processor", "robot.processor"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("there.json", "photo.png", "read/config.json", "robot.plan"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "my.bundle/manifest.json").write_text(BUNDLE)
    (tmp_path / "robot.json").write_text(ENGINE)
    os.link(tmp_path / "photo.png", tmp_path / "same.png")
    (tmp_path / "link.json").symlink_to("there.json")
    (tmp_path / "nowhere.json").symlink_to("nothing.json")
    (tmp_path / "round.json").symlink_to("round.json")
    (tmp_path / "way").symlink_to("my.bundle")
    (tmp_path / "readable").symlink_to("read")
    os.mkfifo(tmp_path / "pipe.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("photo.png", "it is read too"),
        ("same.png", "it is read too"),
        ("./read/../photo.png", "it is read too"),
        ("read/config.json", "it is there already, in the folder read, which is read too"),
        ("readable/config.json", "it is there already, in the folder read, which is read too"),
        ("link.json", r"it is a link, to 'there\.json'"),
        ("nowhere.json", "it is a link, to"),
        ("round.json", "it is a link, to"),
        ("pipe.json", "it is not a plain file"),
        ("read", "it is a folder"),
        ("my.bundle/r.json", r"it is inside .*my\.bundle, which holds nothing but its own files"),
        ("my.bundle/manifest.json", r"it is inside .*my\.bundle"),
        ("my.bundle/processor/new/r.json", r"it is inside .*my\.bundle"),
        ("way/r.json", r"it is inside .*my\.bundle"),
        ("robot.json", r"it is inside .*robot\.plan"),
        ("robot.plan", r"it is inside .*robot\.plan"),
        ("robot.vision.plan", r"it is inside .*robot\.plan"),
        ("robot.processor/r.json", r"it is inside .*robot\.plan"),
        ("photo.png/r.json", r"photo\.png is not a folder"),
        ("a\nb.json", "characters that cannot be printed"),
        ("\udce9.json", "characters that cannot be printed"),
        ("\0.json", "characters that cannot be printed"),
        ("x" * 300 + ".json", "File name too long"),
    ],
)
def test_what_force_does_not_replace(desk: Path, name: str, reason: str) -> None:
    before = {path: path.lstat() for path in desk.rglob("*")}
    with pytest.raises(OutputError, match=reason):
        check_outputs([Path(name)], True, [Path("photo.png"), "read", None, "org/model"])
    assert {path: path.lstat() for path in desk.rglob("*")} == before


def test_what_needs_force(desk: Path) -> None:
    with pytest.raises(OutputError, match=r"there\.json: it already exists") as refused:
        check_outputs([Path("there.json")], option="record")
    assert refused.value.options == ("record", "force")
    check_outputs([Path("there.json")], True)


def test_what_may_be_written(desk: Path) -> None:
    names = ("new.json", "deep/down/new.json", "read/new.json", "robot2.json", "robot.html", "bundle/manifest.json")
    check_outputs([Path(name) for name in names], inputs=["read"], kinds=(".json", ".html"))


def test_names(desk: Path) -> None:
    with pytest.raises(OutputError, match=r"a report's name ends in \.json or \.html, got r\.txt"):
        check_outputs([Path("r.txt")], kinds=(".json", ".html"), noun="report")
    with pytest.raises(OutputError, match=r"n\.json is given twice"):
        check_outputs([Path("n.json"), Path("read/../n.json")])


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1}', '{"format": "other"}', "[" * 100_000])
def test_other_folders_with_such_a_file_are_no_artefacts(tmp_path: Path, text: str) -> None:
    for name in ("manifest.json", "robot.json"):
        (tmp_path / name).write_text(text)
    assert artefact_around(tmp_path / "r.json") is None and artefact_around(tmp_path / "robot.plan") is None
