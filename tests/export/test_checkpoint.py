"""Checkpoints are found, and what cannot be used is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from iwp_export.errors import CheckpointError
from iwp_export.export.checkpoint import open_checkpoint, weight_files
from iwp_export.models import ALIASES
from tests.export.tiny import ASSETS, write_llava


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
    assert {file.name for file in local.processor_files()} >= {"tokenizer.json", "chat_template.jinja", "config.json"}


def test_names_are_the_models_whichever_way_they_were_published(tmp_path: Path) -> None:
    """transformers writes `language_model.model.`; older checkpoints have `vision_tower.vision_model.` too."""
    from safetensors.torch import load_file, save_file

    model = write_llava(tmp_path / "model")
    names = {name for name, _ in model.named_parameters()}
    assert open_checkpoint(str(tmp_path / "model")).weights().keys() == names
    weights = load_file(tmp_path / "model" / "model.safetensors")
    older = {k.replace("vision_tower.", "vision_tower.vision_model."): v for k, v in weights.items()}
    save_file(older, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    assert open_checkpoint(str(tmp_path / "model")).weights().keys() == names


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


def test_a_missing_shard_is_named(folder: Path) -> None:
    index = {"metadata": {"total_size": 8}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors"):
        weight_files(folder)
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        weight_files(folder)


def test_size_comes_from_the_index_while_the_weights_are_not_here(folder: Path) -> None:
    whole = open_checkpoint(str(folder)).size()
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1000}, "weight_map": {"a": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert whole[1] is True
    assert open_checkpoint(str(folder), weights=False).size() == (500, True)


def test_revision_is_for_the_hub(folder: Path) -> None:
    assert "revision main" in refused(folder, revision="main")


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
