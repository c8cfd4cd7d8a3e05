"""Export from the command line: dry run, names, and the bundle it writes."""

from __future__ import annotations

import json

import pytest

from iwp_export.bundle.store import Bundle
from iwp_export.cli.export import default_name
from iwp_export.cli.main import main
from iwp_export.pruning.settings import PruningSettings


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


def test_dry_run_as_json(capsys):
    assert main(["tiny-llava", "--keep", "0.5", "--layer", "2", "--dtype", "float32", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["visual_tokens"], plan["visual_tokens_kept"]) == (64, 32)
    token_bytes = 2 * 2 * 32 * 4  # key and value, two heads of size 32, float32
    assert plan["cache_bytes_unpruned"] == 8 * (64 + 64) * token_bytes
    assert plan["cache_bytes"] == (2 * (64 + 64) + 6 * (32 + 64)) * token_bytes
    assert plan["decoder"]["dtype"] == "float32"


def test_export_writes_a_bundle_with_the_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--keep", "0.25", "--layer", "3", "--penalty", "2", "--query", "last", "--heads", "raw"]
    assert main(["tiny-llava", *options]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("wrote tiny-llava.bundle\n", "")
    expected = PruningSettings(keep=0.25, layer=3, penalty=2.0, query="last", heads="raw")
    assert Bundle.open("tiny-llava.bundle", verify="full").manifest.pruning == expected
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-llava.bundle"]
