"""CMake compiles the kernels for the GPUs that the compiler which is here makes code for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from iwp_export.engine.kernels import ARCHITECTURES

SCRIPT = Path(__file__).parents[3] / "plugins" / "cuda" / "architectures.cmake"

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake")


def choose(folder: Path, told: str) -> subprocess.CompletedProcess[str]:
    """What CMake chooses where nvcc lists `told`; on stderr, as messages of a script are."""
    nvcc = folder / "nvcc"
    nvcc.write_text(f'#!/bin/sh\n[ "$1" = --list-gpu-code ] && for sm in {told}; do echo sm_$sm; done\n')
    nvcc.chmod(0o755)
    script = folder / "script.cmake"
    script.write_text(f'include({SCRIPT})\niwp_architectures({nvcc} found)\nmessage("${{found}}")\n')
    return subprocess.run(["cmake", "-P", str(script)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("told", "chosen"),
    [
        ("50 75 80 86 87 89 90 90a", "75-real;80-real;86-real;87-real;89-real;90"),
        ("75 80 86 87 89 90 90a 100 101 120", "75-real;80-real;86-real;87-real;89-real;90;120-real"),
        ("80 86 87 88 89 90 100 103 110 120 121", "80-real;86-real;87-real;89-real;90;110-real;120-real"),
    ],
)
def test_architectures_are_the_compilers(tmp_path: Path, told: str, chosen: str) -> None:
    assert choose(tmp_path, told).stderr.strip() == chosen


def test_a_compiler_that_tells_nothing_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    done = choose(tmp_path, "")
    assert done.returncode != 0
    assert "pass -DCMAKE_CUDA_ARCHITECTURES=87" in " ".join(done.stderr.split())


def test_pythons_list_is_the_same(tmp_path: Path) -> None:
    chosen = choose(tmp_path, " ".join(ARCHITECTURES)).stderr.strip()
    assert [entry.removesuffix("-real") for entry in chosen.split(";")] == list(ARCHITECTURES)
    assert f"set(IWP_KNOWN_ARCHITECTURES {' '.join(ARCHITECTURES)})" in SCRIPT.read_text()
