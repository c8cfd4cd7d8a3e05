"""Of the files in a folder, those are read that transformers loads; a folder that says two things is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from iwp_export.errors import CheckpointError
from iwp_export.exporter.checkpoint import open_checkpoint
from tests.exporter.tiny import write_llava

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder, in one file; and beside it, in `sharded`, the same in several."""
    base = tmp_path_factory.mktemp("weights")
    model = write_llava(base / "single")
    shutil.copytree(base / "single", base / "sharded")
    (base / "sharded" / SINGLE).unlink()
    model.save_pretrained(base / "sharded", max_shard_size="100KB")
    return base


@pytest.fixture
def single(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "single", tmp_path / "single"))


@pytest.fixture
def sharded(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "sharded", tmp_path / "sharded"))


def others_like(path: Path, value: float = 7.0) -> dict[str, torch.Tensor]:
    """Other weights under the names of a file's."""
    return {name: torch.full_like(tensor, value) for name, tensor in load_file(path).items()}


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor.read() for name, tensor in open_checkpoint(str(folder)).weights().items()}


def loaded_by_transformers(folder: Path) -> dict[str, np.ndarray]:
    """What from_pretrained loads, under the names that it saves."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    again = folder.parent / "again"
    model.save_pretrained(again)
    return {name: tensor.numpy() for name, tensor in load_file(again / SINGLE).items()}


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(folder)).weights()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def add_backup(folder: Path) -> None:
    save_file(others_like(folder / SINGLE), folder / "training_backup.safetensors")


def add_one_tensor(folder: Path) -> None:
    name = next(iter(load_file(folder / SINGLE)))
    save_file({name: torch.zeros(1)}, folder / "a_fix.safetensors")


def add_variant_and_consolidated(folder: Path) -> None:
    for name in ("model.fp16.safetensors", "consolidated.safetensors", "pytorch_model.safetensors"):
        save_file(others_like(folder / SINGLE), folder / name)


def name_another_file(folder: Path) -> None:
    save_file(others_like(folder / SINGLE, 3.0), folder / "chosen.safetensors")
    change(folder, transformers_weights="chosen.safetensors")


@pytest.mark.parametrize("add", [add_backup, add_one_tensor, add_variant_and_consolidated, name_another_file])
def test_the_files_are_those_that_transformers_loads(single: Path, add: Callable[[Path], None]) -> None:
    add(single)
    ours, theirs = weights(single), loaded_by_transformers(single)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_shards_are_read_and_other_files_beside_them_are_not(sharded: Path) -> None:
    assert len(list(sharded.glob("*.safetensors"))) > 2
    save_file({"lm_head.weight": torch.zeros(48, 64)}, sharded / "zzz.safetensors")
    ours, theirs = weights(sharded), loaded_by_transformers(sharded)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_an_index_that_names_the_single_file_is_no_second_set(single: Path) -> None:
    names = load_file(single / SINGLE)
    write_index(single, dict.fromkeys(names, SINGLE))
    assert weights(single).keys() == names.keys()
    write_index(single, {**dict.fromkeys(names, SINGLE), "more": SINGLE})
    assert "does not hold more" in refused(single)


@pytest.mark.parametrize("present", [True, False])
def test_a_single_file_beside_an_index_of_others_is_refused(single: Path, written: Path, present: bool) -> None:
    """transformers would load the single file in silence, and its save_pretrained could have left either behind."""
    for path in (written / "sharded").glob("*.safetensors") if present else ():
        shutil.copyfile(path, single / path.name)
    shutil.copyfile(written / "sharded" / INDEX, single / INDEX)
    line = refused(single)
    assert SINGLE in line and INDEX in line and "model-00001-of-" in line


def test_a_stale_index_beside_other_shards_is_refused(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())["weight_map"]
    one, other = sorted(set(index.values()))[:2]
    moved = next(name for name, file in index.items() if file == one)
    write_index(sharded, {**index, moved: other})
    line = refused(sharded)
    assert moved in line and other in line and INDEX in line


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    one, other = sorted(sharded.glob("*.safetensors"))[:2]
    tensors = load_file(other)
    name = next(iter(load_file(one)))
    save_file({**tensors, name: torch.zeros(1)}, other)
    line = refused(sharded)
    assert name in line and one.name in line and other.name in line


def test_a_missing_shard_is_named(sharded: Path) -> None:
    missing = sorted(sharded.glob("*.safetensors"))[1]
    missing.unlink()
    line = refused(sharded)
    assert missing.name in line and INDEX in line


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": null}}',
        '{"weight_map": {"a": ["model-1.safetensors"]}}',
        '{"weight_map": {"a": "model-1.safetensors"}, "metadata": []}',
        "[" * 100_000,
        "\udcff",
    ],
    ids=lambda content: content[:40],
)
def test_an_index_of_the_wrong_shape_is_damaged(single: Path, content: str) -> None:
    (single / SINGLE).rename(single / "model-1.safetensors")
    (single / INDEX).write_bytes(content.encode(errors="surrogateescape"))
    line = refused(single)
    assert INDEX in line and "damaged" in line


@pytest.mark.parametrize(
    "name",
    ["../stolen.safetensors", "/etc/stolen.safetensors", "a/../../b.safetensors", "c:\\x.safetensors", "x.bin", ""],
)
@pytest.mark.parametrize("where", ["index", "config"])
def test_no_name_leads_out_of_the_folder(single: Path, name: str, where: str) -> None:
    save_file(others_like(single / SINGLE), single.parent / "stolen.safetensors")
    if where == "index":
        (single / SINGLE).unlink()
        write_index(single, {"a": name})
    else:
        change(single, transformers_weights=name)
    assert repr(name) in refused(single)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_is_refused(single: Path, name: str) -> None:
    """transformers applies it with PEFT installed, and ignores it without."""
    (single / name).write_text("{}")
    line = refused(single)
    assert name in line and "merge" in line


def test_a_distributed_checkpoint_is_refused(single: Path) -> None:
    """transformers loads these in place of model.safetensors."""
    name = "shard-00001-model-00001-of-00002.safetensors"
    save_file({"a": torch.zeros(1)}, single / name)
    assert name in refused(single)


@pytest.mark.parametrize(
    "name", ["consolidated.safetensors", "model.fp16.safetensors", "model-00001-of-00002.safetensors"]
)
def test_files_that_transformers_would_not_load_are_no_weights(single: Path, name: str) -> None:
    (single / SINGLE).rename(single / name)
    line = refused(single)
    assert "no weights" in line and name in line and SINGLE in line


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
