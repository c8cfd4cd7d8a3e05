"""Weights are read from safetensors files by the library, one at a time and block by block."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from iwp_export.errors import CheckpointError
from iwp_export.exporter import weights
from iwp_export.exporter.weights import read_header


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    tensors = {
        "half": torch.arange(6, dtype=torch.float16).view(2, 3),
        "brain": torch.arange(6, dtype=torch.bfloat16).view(3, 2) / 3,
        "single": torch.tensor([1.5, -2.0]),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
        "eight": torch.zeros(2, 2, dtype=torch.float8_e4m3fn),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def test_tensors_are_what_was_stored(stored: Path) -> None:
    tensors = read_header(stored)
    assert tensors.keys() == {"half", "brain", "single", "empty", "scalar", "eight"}
    assert np.array_equal(tensors["half"].read(), np.arange(6).reshape(2, 3))
    assert tensors["brain"].read().dtype == ml_dtypes.bfloat16
    assert tensors["single"].read().tolist() == [1.5, -2.0]
    assert tensors["empty"].read().shape == (0, 4)
    assert (tensors["half"].size, tensors["half"].shape, tensors["half"].dtype) == (6, (2, 3), "F16")
    assert (tensors["eight"].size, tensors["eight"].dtype) == (4, "F8_E4M3")


@pytest.mark.parametrize("name", ["half", "brain", "single", "empty", "scalar"])
@pytest.mark.parametrize("block_bytes", [1, 4, 1 << 20])
def test_blocks_are_the_tensor(stored: Path, monkeypatch: pytest.MonkeyPatch, name: str, block_bytes: int) -> None:
    monkeypatch.setattr(weights, "BLOCK_BYTES", block_bytes)
    tensor = read_header(stored)[name]
    out = np.zeros(tensor.shape)
    for place, block in tensor.blocks():
        out[place] = block
    assert np.array_equal(out, tensor.read())


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 20, b"PK\x03\x04" * 10, b"\x10\x00\x00\x00\x00\x00\x00\x00{not json,,,,}"]
)
def test_a_file_that_is_not_safetensors_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_header(path)


def test_a_truncated_file_is_named(stored: Path) -> None:
    stored.write_bytes(stored.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="download it again"):
        read_header(stored)


def entry(start: object, end: object, shape: object = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write(path: Path, header: object, data_bytes: int) -> Path:
    """A file with this header, whatever it says."""
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data_bytes))
    return path


@pytest.mark.parametrize(
    ("header", "data_bytes"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12),
        ({"a": entry(0, 8), "b": entry(0, 8)}, 8),
        ({"a": entry(0, 8), "b": entry(12, 20)}, 20),
        ({"a": entry(-8, 0)}, 8),
        ({"a": entry(8, 0)}, 8),
        ({"a": entry(0, 4)}, 4),
        ({"a": entry(0, 16)}, 16),
        ({"a": entry(0, 8)}, 16),
        ({"a": entry(0, 8, dtype="F16")}, 8),
        ({"a": entry(0, 8, dtype="F99")}, 8),
        ({"a": entry(0, 8, shape=[-2])}, 8),
        ({"a": entry(0, 8, shape=[2.0])}, 8),
        ({"a": entry(0, 8, shape=[1 << 40, 1 << 40])}, 8),
        ({"a": entry(0.0, 8)}, 8),
        ({"a": entry("0", 8)}, 8),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8),
        ([], 0),
    ],
    ids=str,
)
def test_a_header_that_contradicts_itself_or_the_file_is_refused(
    tmp_path: Path, header: object, data_bytes: int
) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a readable safetensors file") as caught:
        read_header(write(tmp_path / "model.safetensors", header, data_bytes))
    assert "\n" not in str(caught.value)


def test_the_header_is_checked_again_when_the_weights_are_read(stored: Path) -> None:
    tensor = read_header(stored)["single"]
    write(stored, {"single": entry(0, 8), "other": entry(4, 12)}, 12)
    with pytest.raises(CheckpointError, match=r"invalid offset|InvalidOffset"):
        next(tensor.blocks())
