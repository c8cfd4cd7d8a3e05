"""The kernels compiled for the CPU, once for all worker processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.plugins.cuda.runners import build_emulated, has_emulator

Emulated = Callable[[int], Path]


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Emulated:
    """The library as for a GPU of compute capability 9.0 (900) or another."""
    if not has_emulator():
        pytest.skip("no g++ to compile the kernels for the CPU")
    base = tmp_path_factory.getbasetemp()
    folder = base if worker_id == "master" else base.parent

    def library(architecture: int) -> Path:
        path = folder / f"emulated-{architecture}.so"
        with FileLock(f"{path}.lock"):
            return path if path.exists() else build_emulated(path, architecture=architecture)

    return library
