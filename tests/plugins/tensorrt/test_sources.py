"""What holds without TensorRT's headers: C++ says what Python says, and CMake says what is missing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from iwp_export.engine.kernels import DUPLICATION_NORMS, SELECTS, SIMILARITIES
from iwp_export.engine.plugin import ATTRIBUTES, FIELDS
from iwp_export.pruning.onnx_function import DOMAIN, INPUTS, OP_TYPE, VERSION
from iwp_export.pruning.settings import PruningSettings
from tests.plugins.tensorrt.building import SOURCES, configure

OPTIONS = (SOURCES / "options.cpp").read_text()
PLUGIN = (SOURCES / "select_tokens_plugin.h").read_text()

needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")


def test_fields_are_the_python_plugins() -> None:
    kinds = {str: "kCHAR", np.int32: "kINT32", np.int64: "kINT64", np.float32: "kFLOAT32"}
    fields = re.findall(r'{"(\w+)", PluginFieldType::(\w+)}', OPTIONS)
    assert fields == [(name, kinds[kind]) for name, kind in FIELDS.items()]


def test_fields_are_the_nodes_attributes() -> None:
    assert set(ATTRIBUTES) == set(PruningSettings().selection())
    assert list(FIELDS) == [*ATTRIBUTES, "workspace"]  # which C++ takes for the last one


def test_names_are_the_python_plugins() -> None:
    for constant, value in (("kPluginName", OP_TYPE), ("kPluginVersion", str(VERSION)), ("kPluginNamespace", DOMAIN)):
        assert f'{constant} = "{value}";' in PLUGIN
    for constant, names in (
        ("kSimilarityNames", SIMILARITIES),
        ("kDuplicationNormNames", DUPLICATION_NORMS),
        ("kSelectNames", SELECTS),
    ):
        listed = ", ".join(f'"{name}"' for name, _ in sorted(names.items(), key=lambda item: item[1]))
        assert f"{constant}[] = {{{listed}}};" in OPTIONS


def test_remedy_names_the_shape_inputs_place() -> None:
    source = (SOURCES / "select_tokens_plugin.cpp").read_text()
    assert f"tensorrt_plugin_shape_input_indices = [{INPUTS.index('num_kept')}]" in source


@needs_cmake
def test_missing_headers_are_an_error_with_the_remedy(tmp_path: Path) -> None:
    done = configure(tmp_path / "build", f"-DTENSORRT_ROOT={tmp_path}")
    assert done.returncode != 0
    message = " ".join(done.stderr.split())
    assert f"NvInferRuntime.h is not under TENSORRT_ROOT ('{tmp_path}')" in message
    assert "-DTENSORRT_ROOT=/path/to/TensorRT" in message and "-DIWP_BUILD_TENSORRT_PLUGIN=OFF" in message


@needs_cmake
@needs_nvcc
def test_default_architectures_stay_from_one_configuration_to_the_next(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        done = configure(tmp_path, "-DIWP_BUILD_TENSORRT_PLUGIN=OFF")
        assert done.returncode == 0, done.stderr
        cache = (tmp_path / "CMakeCache.txt").read_text()
        found += re.findall(r"CMAKE_CUDA_ARCHITECTURES:STRING=(.*)", cache)
    assert len(found) == 2 and found[0] == found[1]
    assert {"80-real", "86-real", "87-real", "90"} <= set(found[0].split(";"))
