"""Checkpoints are found, and what cannot be used is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from iwp_export.errors import CheckpointError
from iwp_export.exporter.checkpoint import open_checkpoint
from iwp_export.exporter.plan import plan_export
from iwp_export.models import ALIASES
from tests.exporter.tiny import ASSETS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ASSETS, tmp_path / "my-llava"))


def refused(model: str | Path, **options: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(model), **options).weights()  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_alias_and_a_folder(folder: Path) -> None:
    alias, local = open_checkpoint("tiny-llava"), open_checkpoint(str(folder))
    assert (alias.name, alias.source, alias.model_type) == ("tiny-llava", "tiny-llava", "llava")
    assert local.name == "my-llava"
    assert alias.weights().keys() == local.weights().keys()
    assert set(map(str, local.processor_files())) >= {"tokenizer.json", "chat_template.jinja", "config.json"}


def test_unknown_alias_lists_the_known() -> None:
    message = refused("lava")
    assert "'lava'" in message
    assert all(alias in message for alias in ALIASES)


def test_no_network() -> None:
    message = refused("nobody/nothing")
    assert "nobody/nothing" in message
    assert "local folder" in message


def test_unsupported_model_type(folder: Path) -> None:
    change(folder, model_type="blip-2")
    message = refused(folder)
    assert "'blip-2'" in message
    assert "llava" in message


def test_code_from_a_repository_is_never_run(folder: Path) -> None:
    change(folder, auto_map={"AutoConfig": "configuration_evil.Config"})
    (folder / "configuration_evil.py").write_text("raise SystemExit('ran')")
    assert "trust_remote_code" in refused(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refused(folder)
    assert "pytorch_model.bin" in message
    assert "safetensors" in message


def test_no_weights_and_no_config(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no weights" in refused(folder)
    (folder / "config.json").unlink()
    assert "config.json" in refused(folder)


@pytest.mark.parametrize("index", [True, False])
def test_size_is_what_the_configuration_asks_for_while_the_weights_are_not_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch, index: bool
) -> None:
    """A dry run of a Hub id, sharded or in one file, fetches no weights."""
    whole = open_checkpoint(str(folder))
    assert (whole.size(), whole.dtype(), whole.is_local) == (1_972_608, "float16", True)
    (folder / "model.safetensors").unlink()
    if index:
        text = json.dumps({"metadata": {"total_size": 1000}, "weight_map": {"a": "model-1.safetensors"}})
        (folder / "model.safetensors.index.json").write_text(text)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: str(folder))
    remote = open_checkpoint("owner/name", weights=False)
    assert (remote.size(), remote.dtype(), remote.is_local) == (1_972_608, "float16", False)
    change(folder, dtype=None)
    assert open_checkpoint("owner/name", weights=False).dtype() == ""
    plan = plan_export("owner/name")
    assert plan.decoder.dtype == "float32" and "names no dtype" in plan.dtype_reason


@pytest.mark.parametrize("configured", ["bfloat16", "float32", None])
def test_element_type_is_transformers_own(folder: Path, configured: str | None) -> None:
    """config.json decides, whatever is stored; without a word there, the first weight."""
    from transformers import AutoModelForImageTextToText

    change(folder, dtype=configured)
    theirs = AutoModelForImageTextToText.from_pretrained(folder)
    assert open_checkpoint(str(folder)).dtype() == str(theirs.dtype).removeprefix("torch.")


def test_element_type_may_be_the_index_s(folder: Path) -> None:
    from safetensors.numpy import load_file
    from transformers import AutoModelForImageTextToText

    change(folder, dtype=None)
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"metadata": {"dtype": "bfloat16"}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert AutoModelForImageTextToText.from_pretrained(folder).dtype == torch.bfloat16
    assert open_checkpoint(str(folder)).dtype() == "bfloat16"


def test_only_the_files_that_transformers_loads_are_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot_download(repo: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    open_checkpoint("owner/name", revision="main")
    small, single = asked
    assert small[:2] == ("owner/name", "main") and "*.safetensors" not in small[2]
    assert single == ("owner/name", "my-llava", ["model.safetensors"])  # of the commit, a snapshot's folder name
    shards = {"a": "model-2.safetensors", "b": "model-1.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (folder / "model.safetensors").unlink()
    open_checkpoint("owner/name")
    assert asked[-1] == ("owner/name", "my-llava", ["model-1.safetensors", "model-2.safetensors"])


def test_revision_is_for_the_hub(folder: Path) -> None:
    assert "revision main" in refused(folder, revision="main")


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
