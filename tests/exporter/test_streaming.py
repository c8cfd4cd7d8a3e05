"""Initializers are cast block by block, and no value gets lost in silence."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file

from iwp_export.errors import CheckpointError
from iwp_export.exporter import weights
from iwp_export.exporter.streaming import TILE, Losses, copy_by_tiles, streamed
from iwp_export.exporter.weights import StoredTensor, read_header

FLOAT, HALF, BRAIN = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
TYPES = {FLOAT: torch.float32, HALF: torch.float16, BRAIN: torch.bfloat16}


def store(folder: Path, **tensors: torch.Tensor) -> dict[str, StoredTensor]:
    save_file(tensors, folder / "model.safetensors")
    return read_header(folder / "model.safetensors")


@pytest.mark.parametrize("block_bytes", [1, 30, 1 << 20])
@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", TYPES)
def test_values_are_those_that_torch_casts_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, stored: torch.dtype, dtype: ir.DataType
) -> None:
    """Also subnormal ones, and those that become zero."""
    monkeypatch.setattr(weights, "BLOCK_BYTES", block_bytes)
    matrix = (torch.randn(7, 5, generator=torch.manual_seed(0)) * torch.logspace(-9, 3, 5)).to(stored)
    tensors = store(tmp_path, matrix=matrix, scalar=matrix[0, 0].clone(), empty=torch.zeros(0, 4, dtype=stored))
    losses = Losses()
    for name, expected in {"matrix": matrix, "scalar": matrix[0, 0], "empty": torch.zeros(0, 4)}.items():
        lazy = streamed(name, tensors[name], dtype, losses)
        assert (list(lazy.shape), lazy.dtype) == (list(expected.shape), dtype)
        assert np.array_equal(lazy.numpy().astype(np.float64), expected.to(TYPES[dtype]).double().numpy())
    turned = streamed("turned", tensors["matrix"], dtype, losses, transpose=True)
    assert list(turned.shape) == [5, 7]
    assert turned.numpy().flags.c_contiguous
    assert np.array_equal(turned.numpy().astype(np.float64), matrix.to(TYPES[dtype]).double().numpy().T)
    assert turned.numpy() is not turned.numpy()
    losses.refuse()


def test_values_that_do_not_fit_are_counted_and_named(tmp_path: Path) -> None:
    up = torch.zeros(300, 40, dtype=torch.bfloat16)
    up[3, 5], up[299, 39], up[7, 7] = 1e5, -3e38, 65280.0
    tensors = store(tmp_path, up=up, down=torch.full((2,), 7e4), fine=torch.tensor([65504.0, -65519.0, 1e-30]))
    losses = Losses()
    for name, tensor in tensors.items():
        streamed(name, tensor, HALF, losses).numpy()
    with pytest.raises(CheckpointError) as caught:
        losses.refuse()
    line = str(caught.value)
    assert line.startswith("4 weights do not fit float16, the largest is 3.004e+38")
    assert "up (2)" in line and "down (2)" in line and "fine" not in line
    assert line.endswith("choose bfloat16 or float32")
    assert caught.value.options == ("dtype",)


def test_a_tensor_that_is_read_twice_is_counted_once(tmp_path: Path) -> None:
    tensors = store(tmp_path, w=torch.tensor([[1e5, 1.0]]))
    losses = Losses()
    for transpose in (False, True):
        streamed("w", tensors["w"], HALF, losses, transpose).numpy()
    with pytest.raises(CheckpointError, match="1 weights do not fit"):
        losses.refuse()


@pytest.mark.parametrize(
    ("stored", "value", "dtype", "remedy"),
    [
        (torch.float32, 3.4e38, BRAIN, "choose float32"),
        (torch.float64, 1e300, BRAIN, "choose float32"),
        (torch.float64, -1e39, FLOAT, "no wider type is supported"),
        (torch.bfloat16, 1e5, HALF, "choose bfloat16 or float32"),
        (torch.float32, 65520.0, HALF, "choose bfloat16 or float32"),
    ],
)
def test_what_fits_is_offered(
    tmp_path: Path, stored: torch.dtype, value: float, dtype: ir.DataType, remedy: str
) -> None:
    losses = Losses()
    streamed("w", store(tmp_path, w=torch.tensor([0.0, value], dtype=stored))["w"], dtype, losses).numpy()
    with pytest.raises(CheckpointError, match=f"1 weights do not fit.*{remedy}$"):
        losses.refuse()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_weight_that_is_not_finite_is_named_first(
    tmp_path: Path, value: float, stored: torch.dtype, dtype: ir.DataType
) -> None:
    broken = torch.ones(3, 3, dtype=stored)
    broken[1, 2] = value
    tensors = store(tmp_path, broken=broken, large=torch.tensor([1e30], dtype=torch.float64))
    losses = Losses()
    for name, tensor in tensors.items():
        streamed(name, tensor, dtype, losses).numpy()
    with pytest.raises(CheckpointError, match=r"1 weights are NaN or infinite in .*model\.safetensors: broken \(1\)"):
        losses.refuse()


def test_many_tensors_are_named_by_the_first_few(tmp_path: Path) -> None:
    losses = Losses()
    for name, tensor in store(tmp_path, **{f"w{i}": torch.tensor([1e6]) for i in range(9)}).items():
        streamed(name, tensor, HALF, losses).numpy()
    with pytest.raises(CheckpointError, match=r"w0 \(1\), w1 \(1\), w2 \(1\), 6 more;"):
        losses.refuse()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_every_pattern_of_bits_is_judged_as_isfinite_does(dtype: type, tmp_path: Path) -> None:
    step = 1 if np.dtype(dtype).itemsize == 2 else 65521
    bits = np.arange(0, 1 << 8 * np.dtype(dtype).itemsize, step, dtype=f"u{np.dtype(dtype).itemsize}")
    values: np.ndarray = bits.view(dtype)
    tensor = StoredTensor(tmp_path, "w", "", ())
    losses = Losses()
    assert np.array_equal(losses.cast(tensor, values, values.dtype).view(bits.dtype), bits)
    with np.errstate(invalid="ignore"):
        is_finite = np.isfinite(values)
    assert losses.tensors[tensor].broken == np.count_nonzero(~is_finite)
    finite = values[is_finite]
    losses.tensors.pop(tensor, None)
    losses.cast(tensor, finite, finite.dtype)
    assert not losses.tensors


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (TILE, 2 * TILE), (TILE + 1, 3 * TILE - 1)])
def test_copying_by_tiles_is_copying(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape)
    out = np.zeros(shape[::-1])
    copy_by_tiles(out.T, matrix)
    assert np.array_equal(out, matrix.T)
