"""The commands of `validate`: what they write, and how they end."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from iwp_export.errors import DataError
from iwp_export.reports import entry


def run(execute: Callable[[argparse.Namespace], int], *arguments: str) -> int:
    parser = entry.make_parser("A command.", needs_data=False)
    parser.add_argument("--picture", type=Path)
    return entry.run(parser, execute, "test", ["some.bundle", *arguments])


def test_what_cannot_be_written_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("no folder")
    for arguments in (
        ["-o", str(tmp_path)],
        ["-o", str(tmp_path / "file" / "a.json")],
        ["-o", str(tmp_path / "a"), "--picture", str(tmp_path / "a")],
        ["-o", str(tmp_path / "file"), "--data", str(tmp_path / "x" / ".." / "file")],
    ):
        assert run(lambda args: pytest.fail("it ran"), *arguments) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "no folder"


def test_reports_are_whole_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.json"
    entry.write_report({"a": 1}, file)
    with pytest.raises(TypeError):
        entry.write_report({"a": object()}, file)
    assert json.loads(file.read_text()) == {"a": 1} and list(file.parent.iterdir()) == [file]


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def missing(args: argparse.Namespace) -> int:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    def wrong(args: argparse.Namespace) -> int:
        raise DataError("no \x1b[2J file\nof that name")

    def stopped(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    assert run(missing) == 1 and "pip install 'iwp-export[export]'" in capsys.readouterr().err
    assert run(wrong) == 1 and capsys.readouterr().err == "error: no \ufffd[2J file of that name\n"
    assert run(stopped) == 130 and capsys.readouterr().err == "interrupted\n"


def test_a_stopped_command_leaves_nothing_half_written(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from pathlib import Path
from iwp_export.files import whole_file
from iwp_export.reports import entry
def execute(args):
    with whole_file(Path({str(tmp_path / "a.json")!r})) as file:
        file.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)
sys.exit(entry.run(entry.make_parser("x", needs_data=False), execute, "test", ["some.bundle"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (143, "") and list(tmp_path.iterdir()) == []
