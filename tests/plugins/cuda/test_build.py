"""The kernels compile without a warning for every architecture that the project names."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from iwp_export.device.machine import find_nvcc
from iwp_export.engine.kernels import ARCHITECTURES, compile_library

NVCC = find_nvcc()


@pytest.mark.skipif(NVCC is None, reason="no nvcc: the CUDA kernels are not compiled here")
def test_compiles_and_links_for_all_architectures(tmp_path: Path) -> None:
    library = tmp_path / "libiwp_select_tokens.so"
    assert NVCC is not None
    assert compile_library(library, ARCHITECTURES, NVCC) == ""  # not even a warning
    loaded = ctypes.CDLL(str(library))  # needs libcudart, which is linked in, and no driver
    assert loaded.iwp_select_tokens_workspace(None) == 0
