"""The emulated kernels under ThreadSanitizer: no two threads touch the same memory without an order between them."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iwp_export.engine.kernels import INCLUDES, SOURCES
from tests.plugins.cuda.cases import covering, make_case
from tests.plugins.cuda.runners import EMULATION, EmulatedRunner, build_emulated, has_emulator
from tests.plugins.cuda.test_emulated import FORMS, TEAM

pytestmark = pytest.mark.skipif(not has_emulator(), reason="no g++ to compile the kernels for the CPU")

REPOSITORY = Path(__file__).parents[3]
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ("-O1", "-g1", "-fsanitize=thread")
REPORTED = 66
REPORT = "WARNING: ThreadSanitizer: data race"

RIGHT = (
    "neighbour_after_barrier",
    "next_launch_reads",
    "blocks_write_apart",
    "blocks_add_up",
    "last_block_after_fence",
    "copy_after_wait_and_barrier",
    "two_sums",
    "team_reads_after_wait",
)
WRONG = (
    "neighbour_without_barrier",
    "neighbour_after_shuffle",
    "buffer_written_again_without_barrier",
    "blocks_write_the_same",
    "last_block_without_fence",
    "copy_without_barrier",
    "copy_without_wait",
    "copy_into_what_is_read",
    "team_writes_what_others_read",
    "team_waits_without_first_fence",
    "team_waits_without_second_fence",
)


def quick_ones(names: tuple[str, ...]) -> list[Any]:
    """The first, and the others marked slow."""
    return [names[0], *(pytest.param(name, marks=pytest.mark.slow) for name in names[1:])]


@pytest.fixture(scope="module")
def sanitizer() -> str:
    """The path of libtsan, which must be in a process before anything else."""
    asked = [COMPILER, "-print-file-name=libtsan.so"]
    path = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_file():
        pytest.skip(f"{COMPILER} has no libtsan, ThreadSanitizer's library")
    done = _run(path, "import ctypes; ctypes.CDLL(None).__tsan_switch_to_fiber")
    if done.returncode:  # some kernels lay out memory as some versions of it do not know
        pytest.skip(f"ThreadSanitizer does not start here: {(done.stderr.splitlines() or ['no message'])[-1]}")
    return path


@pytest.fixture(scope="module")
def small_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build_small_kernels(tmp_path_factory.mktemp("races") / "small.so")


@pytest.mark.slow
def test_kernels_have_no_race_and_stay_right(sanitizer: str, tmp_path: Path) -> None:
    library = build_emulated(tmp_path / "races.so", FLAGS)
    done = _run(sanitizer, f"from tests.plugins.cuda.test_races import judge; judge({str(library)!r})")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["equal"] * 4 * len(FORMS)


@pytest.mark.parametrize("name", quick_ones(RIGHT))
def test_what_is_ordered_is_not_reported(name: str, sanitizer: str, small_kernels: Path) -> None:
    done = _call(sanitizer, small_kernels, name)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", quick_ones(WRONG))
def test_what_is_not_ordered_is_reported(name: str, sanitizer: str, small_kernels: Path) -> None:
    done = _call(sanitizer, small_kernels, name)
    assert done.returncode == REPORTED
    assert REPORT in done.stderr


@pytest.mark.slow
def test_a_barrier_that_the_kernels_source_lacks_is_reported(sanitizer: str, tmp_path: Path) -> None:
    source = (SOURCES / "src" / "block_ops.cuh").read_text(encoding="utf-8")
    needed = "  __syncthreads();\n  *total = all;"  # a second sum would write what others still read
    assert source.count(needed) == 1
    (tmp_path / "block_ops.cuh").write_text(source.replace(needed, "  *total = all;"), encoding="utf-8")
    done = _call(sanitizer, _build_small_kernels(tmp_path / "small.so", tmp_path), "two_sums")
    assert done.returncode == REPORTED
    assert REPORT in done.stderr
    assert "BlockExclusiveSum" in done.stderr


def judge(library: str) -> None:
    """Run cases, in a process under ThreadSanitizer, and print for each whether it equals the oracle's output."""
    rng = np.random.default_rng(11)
    make = partial(make_case, rng, visual=110, text=8, keep=0.4, chunk=8, head_dim=72, clusters=9)
    small_rounds = make(chunk=9, growth=1, duplication_norm="minmax")
    cases = (make(), make(data_type="float32", duplication_norm="minmax", similarity="key"), small_rounds)
    for settings in FORMS.values():
        runner = EmulatedRunner(Path(library), **settings)
        for case in (*cases, covering(cases[0])):
            kept = runner(case, multiprocessors=TEAM)
            print("equal" if case.judge(kept) == 0 else "a tie broken differently")


def _build_small_kernels(output: Path, *first: Path) -> Path:
    """Compile race_kernels.cu with headers from `first`, then from the kernels' sources."""
    includes = [f"-I{path}" for path in (*first, EMULATION, *INCLUDES)]
    flags = ["-std=c++17", *FLAGS, "-fPIC", "-shared", "-DIWP_EMULATION", "-DIWP_EMULATED_ARCH=900"]
    sources = ["-x", "c++", str(Path(__file__).with_name("race_kernels.cu")), str(EMULATION / "scheduler.cpp")]
    subprocess.run([COMPILER, *flags, "-Wno-unknown-pragmas", *includes, *sources, "-o", str(output)], check=True)
    return output


def _call(sanitizer: str, library: Path, name: str) -> subprocess.CompletedProcess[str]:
    return _run(sanitizer, f"import ctypes; ctypes.CDLL({str(library)!r}).{name}()")


def _run(sanitizer: str, program: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program under ThreadSanitizer, which ends it at the first race with exit code REPORTED."""
    options = f"halt_on_error=1 exitcode={REPORTED} atexit_sleep_ms=0"
    environment = {**os.environ, "LD_PRELOAD": sanitizer, "TSAN_OPTIONS": options, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
