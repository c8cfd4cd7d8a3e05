"""The C++ plugin, built where TensorRT's headers are: TENSORRT_ROOT names their folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from tests.plugins.conftest import Emulated
from tests.plugins.tensorrt.building import (
    build,
    build_harness,
    build_plugin,
    configure,
    find_cuda_headers,
    find_headers,
)
from tests.plugins.tensorrt.harness import Harness

ARCHITECTURE = "86"


@pytest.fixture(scope="session")
def tensorrt_root() -> Path:
    root = os.environ.get("TENSORRT_ROOT")
    if not root:
        pytest.skip("needs TensorRT's C++ headers: set TENSORRT_ROOT to a folder with include/NvInferRuntime.h")
    return Path(root)


@pytest.fixture(scope="session")
def shell(tensorrt_root: Path, emulated: Emulated, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """The plugin over kernels that run on the CPU, loaded without TensorRT."""
    cuda_headers = find_cuda_headers()
    if cuda_headers is None:
        pytest.skip("needs the CUDA toolkit, whose headers TensorRT's include")
    headers = find_headers(tensorrt_root)
    folder = tmp_path_factory.mktemp("shell")
    plugin = build_plugin(folder / "libplugin.so", headers, emulated(900), cuda_headers)
    return Harness(build_harness(folder / "libharness.so", headers, cuda_headers), plugin)


@pytest.fixture(scope="session")
def plugin_library(tensorrt_root: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """libiwp_plugin.so from CMake and nvcc for one architecture, once for all worker processes."""
    if shutil.which("cmake") is None or shutil.which("nvcc") is None:
        pytest.skip("needs cmake and nvcc")
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "iwp-plugin-build"
    library = folder / "libiwp_plugin.so"
    with FileLock(f"{folder}.lock"):
        if not library.exists():
            definitions = (f"-DTENSORRT_ROOT={tensorrt_root}", f"-DCMAKE_CUDA_ARCHITECTURES={ARCHITECTURE}")
            for done in (configure(folder, *definitions), build(folder, "iwp_plugin")):
                assert done.returncode == 0, done.stdout + done.stderr
            assert "warning" not in done.stdout + done.stderr
    return library
