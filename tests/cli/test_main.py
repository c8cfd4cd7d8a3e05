"""The dispatcher: which verb runs, exit codes, and what is imported."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iwp_export.cli import doctor, export, main
from iwp_export.errors import SettingsError

HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "PIL", "rich", "safetensors")


def in_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_help_imports_nothing_heavy():
    calls = [[], ["--help"], ["--version"], *([verb, "--help"] for verb in main.VERBS)]
    code = f"""
import sys
from iwp_export.cli.main import main
for arguments in {calls!r}:
    try:
        main(arguments)
    except SystemExit:
        pass
    print("IMPORTED", arguments, [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = in_python(code)
    found = [line for line in done.stdout.splitlines() if line.startswith("IMPORTED")]
    assert found == [f"IMPORTED {arguments} []" for arguments in calls], done.stdout + done.stderr


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in main.VERBS)
    assert "--keep" in shown and "(default: 0.3)" in shown


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith("iwp-export ")


def test_no_argument_shows_help_and_fails(capsys):
    assert main.main([]) == 2
    assert "iwp-export MODEL" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["some-model", "--keep", "0.5"], ["export", "some-model", "--keep", "0.5"]])
def test_a_model_without_a_verb_is_exported(monkeypatch, arguments):
    seen: list[argparse.Namespace] = []
    monkeypatch.setattr(export, "execute", seen.append)
    assert main.main(arguments) == 0
    assert (seen[0].model, seen[0].keep) == ("some-model", 0.5)


@pytest.mark.parametrize("arguments", [["x", "--unknown"], ["run", "x"], ["x", "--keep", "much"], ["x", "--ke", "0.5"]])
def test_a_wrong_call_exits_2_with_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(arguments)
    assert stop.value.code == 2 and "usage: iwp-export" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (SettingsError("keep\nis wrong"), 1, "iwp-export: error: keep is wrong"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 1, "iwp-export doctor shows what to install"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_line(monkeypatch, capsys, error, code, line):
    def fail(args):
        raise error

    monkeypatch.setattr(doctor, "execute", fail)
    assert main.main(["doctor"]) == code
    shown = capsys.readouterr().err.strip()
    assert line in shown and len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), ModuleNotFoundError("no module iwp_export.nothing", name="iwp_export.nothing")]
)
def test_bugs_keep_their_traceback(monkeypatch, error):
    def fail(args):
        raise error

    monkeypatch.setattr(doctor, "execute", fail)
    with pytest.raises(type(error)):
        main.main(["doctor"])


def test_debug_shows_where_an_error_is_from(monkeypatch):
    monkeypatch.setenv("IWP_EXPORT_DEBUG", "1")
    with pytest.raises(SettingsError):
        main.main(["tiny-llava", "--keep", "7"])


def test_a_reader_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    code = """
import sys
from iwp_export.cli import doctor
from iwp_export.cli.main import main
doctor.execute = lambda args: print("x" * 100_000)
sys.exit(main(["doctor"]))
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(("signal", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stopped_export_cleans_up(tmp_path: Path, signal, code):
    program = f"""
import os, signal, sys
from iwp_export.bundle.store import BundleWriter
from iwp_export.cli import export
from iwp_export.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
def write(args):
    with BundleWriter(args.output) as writer:
        (writer.folder / "half").write_text("written")
        os.kill(os.getpid(), signal.{signal})
export.execute = write
sys.exit(main(["tiny-llava", "-o", {str(tmp_path / "x.bundle")!r}]))
"""
    done = in_python(program)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("outcome", "code"), [(None, 0), (1, 1), (SettingsError("no"), 2)])
def test_a_verb_with_gates_has_exit_codes_of_its_own(monkeypatch, outcome, code):
    def execute(args):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(doctor, "execute", execute)
    monkeypatch.setattr(doctor, "EXIT_ERROR", 2, raising=False)
    assert main.main(["doctor"]) == code


def test_a_bug_of_a_verb_with_gates_is_no_failed_gate(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "execute", lambda args: dict[str, int]()["a bug"])
    monkeypatch.setattr(doctor, "EXIT_ERROR", 2, raising=False)
    assert main.main(["doctor"]) == 2
    assert "KeyError: 'a bug'" in capsys.readouterr().err


def test_an_error_does_not_steer_the_terminal(monkeypatch, capsys):
    def execute(args):
        raise SettingsError("no file \x1b[2J\x00.png")

    monkeypatch.setattr(doctor, "execute", execute)
    assert main.main(["doctor"]) == 1
    assert capsys.readouterr().err == "iwp-export: error: no file \ufffd[2J\ufffd.png\n"


def test_what_the_terminal_cannot_write_is_escaped():
    code = """
import sys
from iwp_export.cli import doctor
from iwp_export.cli.main import main
doctor.execute = lambda args: print(chr(0x5DE6))
sys.exit(main(["doctor"]))
"""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "\\u5de6\n"), done.stderr
