"""What a user gets wrong: one line that names it, exit code 1, nothing left behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

from iwp_export.models import ALIASES
from tests.cli.refusals import checkpoint, fails


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--keep", "1.5", "keep must be a number from 0.0001 to 1, got 1.5"),
        ("--keep", "0", "keep must be"),
        ("--keep", "nan", "keep must be"),
        ("--layer", "-1", "layer must be"),
        ("--layer", "8", "cannot be pruned at layer 8; choose layer 0 to 7 (--layer)"),
        ("--chunk", "0", "chunk must be"),
        ("--growth", "0", "growth must be"),
        ("--penalty", "-1", "penalty must be"),
        ("--query", "first", "query must be one of text_after_image"),
        ("--heads", "max", "heads must be one of softmax"),
    ],
)
def test_settings_out_of_range(capsys, tmp_path, option, value, named, dry):
    assert named in fails(capsys, "tiny-llava", option, value, *dry)
    assert list(tmp_path.iterdir()) == []


def test_unknown_alias_lists_the_known_ones(capsys):
    line = fails(capsys, "tiny-lava")
    assert "tiny-lava" in line and all(alias in line for alias in ALIASES)


def test_no_network(capsys):
    line = fails(capsys, "nobody/no-such-model", "--dry-run")
    assert "nobody/no-such-model" in line and "network" in line


def test_revision_of_a_folder(capsys, tmp_path):
    assert "--revision" in fails(capsys, checkpoint(tmp_path), "--revision", "main", "--dry-run")


def test_unsupported_model_type(capsys, tmp_path):
    line = fails(capsys, checkpoint(tmp_path, model_type="florence2"), "--dry-run")
    assert "florence2" in line and "llava" in line


def test_remote_code_is_never_run(capsys, tmp_path):
    folder = checkpoint(tmp_path, auto_map={"AutoModel": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('this ran')")
    assert "trust_remote_code" in fails(capsys, folder, "--dry-run")


def test_pickled_weights_are_refused(capsys, tmp_path):
    folder = checkpoint(tmp_path, weights=False)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    line = fails(capsys, folder)
    assert "pytorch_model.bin" in line and "safetensors" in line


def test_no_weights(capsys, tmp_path):
    assert "no weights" in fails(capsys, checkpoint(tmp_path, weights=False), "--dry-run")


def test_exporting_without_its_packages():
    code = """
import sys
sys.modules["onnx_ir"] = None
from iwp_export.cli.main import main
sys.exit(main(["tiny-llava"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == ("iwp-export: error: exporting needs onnx_ir; to get it: pip install 'iwp-export[export]'\n")


def test_folder_without_a_model(capsys, tmp_path):
    assert "config.json" in fails(capsys, tmp_path)


def test_output_exists(capsys, tmp_path):
    (tmp_path / "tiny-llava.bundle").mkdir()
    line = fails(capsys, "tiny-llava")
    assert "already exists" in line and "--force" in line


def test_force_never_replaces_what_is_no_bundle(capsys, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years")
    assert "thesis" in fails(capsys, "tiny-llava", "-o", "thesis", "--force")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years"


def test_a_plan_that_cannot_be_built_is_refused_before_any_work(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("iwp_export.engine.build.is_installed", lambda name: False)
    line = fails(capsys, "nobody/no-such-model", "-o", "engine.plan")
    assert "iwp-export build NAME.bundle -o NAME.plan" in line and "pip install 'iwp-export[rtx]'" in line


@pytest.mark.parametrize("verb", [["inspect"], ["run", "--prompt", "what ?"]])
def test_missing_bundle(capsys, verb):
    assert "nothing.bundle" in fails(capsys, verb[0], "nothing.bundle", *verb[1:])


def test_a_file_is_no_bundle(capsys, tmp_path):
    (tmp_path / "x.bundle").write_text("")
    assert "x.bundle" in fails(capsys, "inspect", "x.bundle")
