"""Export from the command line: dry run, names, and the bundle it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from iwp_export.bundle.store import Bundle
from iwp_export.cli.export import default_name
from iwp_export.cli.main import main
from iwp_export.models import ALIASES
from iwp_export.pruning.settings import PruningSettings
from tests.conftest import graphs_of


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("tiny-llava", "tiny-llava"),
        ("llava-hf/llava-1.5-7b-hf", "llava-1.5-7b-hf"),
        ("./models/my-llava/", "my-llava"),
    ],
)
def test_default_name(model, name):
    assert default_name(model) == name


def test_dry_run_says_what_would_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["tiny-llava", "--keep", "0.3", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "keep 0.30 -> 20 of 64 visual tokens" in shown
    assert "MiB" in shown and "for one image and 64 text tokens" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("dtype", "of_checkpoint", "shown"),
    [
        ("auto", "bfloat16", "float16 (auto: the checkpoint is bfloat16)"),
        ("auto", "float16", "float16 (auto: the checkpoint is float16)"),
        ("auto", "float32", "float32 (auto: the checkpoint is float32)"),
        ("auto", "float64", "float32 (auto: the checkpoint is float64)"),
        ("bfloat16", "float32", "bfloat16 (as asked)"),
    ],
)
def test_dry_run_says_which_element_type_and_why(tmp_path, capsys, dtype, of_checkpoint, shown):
    folder = Path(shutil.copytree(ALIASES["tiny-llava"], tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": of_checkpoint}))
    assert main([str(folder), "--dtype", dtype, "--dry-run"]) == 0
    assert f"8 layers of 128, {shown}\n" in capsys.readouterr().out
    assert main([str(folder), "--dtype", dtype, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert f"{plan['decoder']['dtype']} ({plan['dtype_reason']})" == shown
    assert plan["weight_bytes"] == 1_972_608 * (4 if "float32 (" in shown else 2)


def test_dry_run_as_json(capsys):
    options = ["--recipe", "paper", "--keep", "0.5", "--layer", "2", "--dtype", "float32"]
    assert main(["tiny-llava", *options, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["visual_tokens"], plan["visual_tokens_kept"]) == (64, 32)
    token_bytes = 2 * 2 * 32 * 4  # key and value, two heads of size 32, float32
    assert plan["cache_bytes_unpruned"] == 8 * (64 + 64) * token_bytes
    assert plan["cache_bytes"] == (2 * (64 + 64) + 6 * (32 + 64)) * token_bytes
    assert plan["decoder"]["dtype"] == "float32"


def test_export_writes_a_bundle_with_the_settings(tmp_path, monkeypatch, capsys, half_bundle):
    monkeypatch.chdir(tmp_path)
    options = ["--keep", "0.25", "--layer", "3", "--penalty", "2", "--query", "last", "--heads", "raw"]
    with graphs_of(half_bundle):
        assert main(["tiny-llava", "--recipe", "paper", *options]) == 0
    shown = capsys.readouterr()
    said = "the paper's, but for layer, keep, penalty, query, heads"
    assert (shown.out, shown.err) == (f"wrote tiny-llava.bundle; settings: {said}\n", "")
    expected = PruningSettings(keep=0.25, layer=3, penalty=2.0, query="last", heads="raw")
    assert Bundle.open("tiny-llava.bundle", verify="full").manifest.pruning == expected
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-llava.bundle"]
