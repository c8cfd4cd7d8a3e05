"""The kernels compile without a warning for every architecture that the project names."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest

from plugins.cuda.build import ARCHITECTURES, build


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc: the CUDA kernels are not compiled here")
def test_compiles_and_links_for_all_architectures(tmp_path: Path) -> None:
    library = build(tmp_path / "libiwp_select_tokens.so", ARCHITECTURES)
    loaded = ctypes.CDLL(str(library))  # needs libcudart, which is linked in, and no driver
    assert loaded.iwp_select_tokens_workspace(None) == 0
