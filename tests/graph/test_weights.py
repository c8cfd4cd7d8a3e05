"""Weights are read from safetensors files by their headers, one at a time."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file

from iwp_export.errors import CheckpointError
from iwp_export.graph.weights import TILE, read_header, renamed, streamed, transposed


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    tensors = {
        "half": torch.arange(6, dtype=torch.float16).view(2, 3),
        "brain": torch.arange(6, dtype=torch.bfloat16).view(3, 2) / 3,
        "single": torch.tensor([1.5, -2.0]),
        "empty": torch.zeros(0, 4),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def test_tensors_are_what_was_stored(stored: Path) -> None:
    tensors = read_header(stored)
    assert tensors.keys() == {"half", "brain", "single", "empty"}
    assert np.array_equal(tensors["half"].read(), np.arange(6).reshape(2, 3))
    assert tensors["brain"].read().dtype == ml_dtypes.bfloat16
    assert tensors["single"].read().tolist() == [1.5, -2.0]
    assert tensors["empty"].read().shape == (0, 4)
    assert tensors["half"].nbytes == 12


def test_streamed_tensors_are_cast_and_transposed_and_not_kept(stored: Path) -> None:
    lazy = streamed("w", read_header(stored)["half"], ir.DataType.FLOAT, transpose=True)
    assert list(lazy.shape) == [3, 2]
    assert np.array_equal(lazy.numpy(), np.arange(6, dtype=np.float32).reshape(2, 3).T)
    assert lazy.dtype == ir.DataType.FLOAT
    assert lazy.numpy() is not lazy.numpy()


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


def test_the_first_rename_that_matches_wins(stored: Path) -> None:
    names = renamed(read_header(stored), [("^ha", "A."), ("^h", "B."), ("^s", "C.")])
    assert names.keys() == {"A.lf", "brain", "C.ingle", "empty"}


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (TILE, 2 * TILE), (TILE + 1, 3 * TILE - 1)])
def test_transposing_by_tiles_is_transposing(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape)
    out = transposed(matrix)
    assert out.flags.c_contiguous
    assert np.array_equal(out, matrix.T)
