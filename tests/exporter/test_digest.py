"""A checkpoint's digest: the same for the same model however it lies on disk, another one for any other model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from iwp_export.errors import CheckpointError
from iwp_export.exporter.checkpoint import open_checkpoint
from iwp_export.exporter.weights import INDEX, SINGLE
from tests.exporter.tiny import ASSETS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ASSETS, tmp_path / "my-llava"))


def digest(folder: Path | str) -> str:
    return open_checkpoint(str(folder)).digest()


def test_a_copy_has_the_same_digest(folder: Path) -> None:
    assert digest(folder) == digest("tiny-llava")
    assert len(digest(folder)) == 64


def test_neither_layout_nor_shards_matter(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(dict(reversed(json.loads(config.read_text()).items())), indent=7))
    tensors = load_file(folder / SINGLE)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[1::2], "model-00002-of-00002.safetensors": names[::2]}
    (folder / SINGLE).unlink()
    for file, inside in shards.items():
        save_file({name: tensors[name] for name in inside}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, inside in shards.items() for name in inside}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert digest(folder) == digest("tiny-llava")


def test_configuration_names_types_and_heads_of_tensors_matter(folder: Path) -> None:
    original, seen = load_file(folder / SINGLE), {digest(folder)}
    name = min(original, key=lambda name: -original[name].size)
    tensor = original[name]
    assert tensor.nbytes > 8192

    first = tensor.copy()
    first.flat[0] += 1
    for changed in (first, tensor.astype(np.float64), tensor.reshape(1, *tensor.shape)):
        save_file({**original, name: changed}, folder / SINGLE)
        seen.add(digest(folder))
    save_file({("x" if key == name else key): value for key, value in original.items()}, folder / SINGLE)
    seen.add(digest(folder))
    save_file(original, folder / SINGLE)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "bos_token_id": 1}))
    seen.add(digest(folder))
    assert len(seen) == 6


def test_a_value_deep_in_a_tensor_is_not_read(folder: Path) -> None:
    """Documented: the price of a digest that is cheap on 14 GB."""
    tensors, before = load_file(folder / SINGLE), digest(folder)
    name = min(tensors, key=lambda name: -tensors[name].size)
    tensors[name].flat[-1] += 1
    save_file(tensors, folder / SINGLE)
    assert digest(folder) == before


def test_without_weights_there_is_none(folder: Path) -> None:
    (folder / SINGLE).unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        digest(folder)
