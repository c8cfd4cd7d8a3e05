"""The kernels compile without a warning for every architecture that the project names."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from iwp_export.device.machine import find_nvcc
from iwp_export.engine import kernels

NVCC = find_nvcc().path


pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc: the CUDA kernels are not compiled here")


def test_a_source_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them for one architecture; the others take minutes."""
    monkeypatch.setattr(kernels, "source_files", lambda: [kernels.SOURCES / "src" / "token_stats.cu"])
    assert NVCC is not None
    assert kernels.compile_library(tmp_path / "part.so", ["87"], NVCC) == ""  # not even a warning


@pytest.mark.slow
def test_compiles_and_links_for_all_architectures(tmp_path: Path) -> None:
    library = tmp_path / "libiwp_select_tokens.so"
    assert NVCC is not None
    assert kernels.compile_library(library, kernels.ARCHITECTURES, NVCC) == ""
    loaded = ctypes.CDLL(str(library))  # needs libcudart, which is linked in, and no driver
    assert loaded.iwp_select_tokens_workspace(None) == 0
