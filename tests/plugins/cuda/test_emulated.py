"""The kernels' own sources, compiled for the CPU and run thread by thread: the oracle's indices, in every form."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iwp_export.engine.kernels import NoKernels, SelectionAddresses, SelectionShape
from iwp_export.errors import BackendError
from tests.plugins.cuda.cases import DEFAULTS, adversarial_cases, make_case, random_cases
from tests.plugins.cuda.runners import EmulatedRunner, build_emulated, has_emulator

pytestmark = pytest.mark.skipif(not has_emulator(), reason="no g++ to compile the kernels for the CPU")

FORMS: dict[str, dict[str, int]] = {
    "one block": {},
    "matrix": {"IWP_ONE_BLOCK_TOKENS": 0},
    "large": {"IWP_ONE_BLOCK_TOKENS": 0, "IWP_MATRIX_TOKENS": 0},
    "turing": {"architecture": 750},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("emulated")


@pytest.fixture(scope="module")
def default(folder: Path) -> EmulatedRunner:
    return EmulatedRunner(build_emulated(folder / "default.so"))


@pytest.fixture(scope="module", params=FORMS)
def runner(request: pytest.FixtureRequest, folder: Path, default: EmulatedRunner) -> EmulatedRunner:
    """The form that a size would choose, forced: thresholds are lowered so that small inputs reach each."""
    choices = FORMS[request.param]
    return EmulatedRunner(build_emulated(folder / f"{request.param}.so", **choices)) if choices else default


@pytest.mark.parametrize("seed", [0, 1])
def test_indices_equal_the_oracles(runner: EmulatedRunner, seed: int) -> None:
    cases = [*adversarial_cases(), *random_cases(25, largest=150, seed=seed)]
    ties = [gap for case in cases if (gap := case.judge(runner(case, seed=seed, multiprocessors=132)))]
    assert len(ties) <= 1, f"{len(ties)} of {len(cases)} differ in a tie: more than rounding explains"


@pytest.mark.parametrize(("block", "extra_bits"), [(4, 0), (8, 1), (16, 2)], ids=["turing", "ampere", "hopper"])
def test_indices_equal_the_oracles_where_tensor_cores_round(folder: Path, block: int, extra_bits: int) -> None:
    library = folder / f"rounding_{block}.so"
    rounding = EmulatedRunner(build_emulated(library, IWP_EMULATED_BLOCK=block, IWP_EMULATED_EXTRA_BITS=extra_bits))
    cases = [*adversarial_cases(), *random_cases(40, largest=150, seed=7)]
    ties = [gap for case in cases if (gap := case.judge(rounding(case, multiprocessors=132)))]
    assert len(ties) <= 1, f"{len(ties)} of {len(cases)} differ in a tie: more than rounding explains"


def test_inputs_off_their_alignment(runner: EmulatedRunner) -> None:
    for case in random_cases(8, largest=100, seed=5):
        assert case.judge(runner(case, offset=1)) == 0


def test_heads_split_over_blocks_change_nothing(default: EmulatedRunner) -> None:
    case = make_case(np.random.default_rng(2), visual=200, text=8, keep=0.4, heads=8, kv_heads=8, clusters=9)
    kept = default(case, multiprocessors=1)
    for multiprocessors in (8, 30, 1000):
        np.testing.assert_array_equal(kept, default(case, multiprocessors=multiprocessors, seed=multiprocessors))


def test_order_of_threads_and_blocks_changes_nothing(runner: EmulatedRunner) -> None:
    case = make_case(np.random.default_rng(3), visual=140, text=8, keep=0.4, clusters=9, batch=2)
    kept = runner(case, multiprocessors=132)
    for seed in range(1, 7):
        np.testing.assert_array_equal(kept, runner(case, seed=seed, multiprocessors=132))


def test_sizes_that_choose_the_other_forms(default: EmulatedRunner) -> None:
    rng = np.random.default_rng(4)
    for visual, keep in ((1600, 0.2), (4200, 0.05)):
        case = make_case(rng, visual=visual, text=9, keep=keep, heads=2, kv_heads=1, head_dim=16, clusters=50)
        assert case.judge(default(case, multiprocessors=132)) == 0


def test_the_stand_ins_scratch_memory_is_enough(default: EmulatedRunner) -> None:
    """An engine that is built without the kernels asks for what the stand-in says, and they must fit into it."""
    rng = np.random.default_rng(9)
    for _ in range(300):
        kv_heads = int(rng.integers(1, 33))
        tokens = int(rng.choice([1, 31, 33, 577, 1536, 1537, 4096, 4097, 17000]))
        shape = SelectionShape(
            batch=int(rng.integers(1, 4)),
            heads=kv_heads * int(rng.integers(1, 9)),
            kv_heads=kv_heads,
            tokens=tokens,
            head_dim=int(rng.integers(1, 257)),
            num_kept=int(rng.integers(1, tokens + 1)),
            data_type=str(rng.choice(["float16", "bfloat16", "float32"])),
        )
        assert 0 < default.kernels.workspace_bytes(shape, DEFAULTS) <= NoKernels().workspace_bytes(shape, DEFAULTS)


def test_values_next_to_nothing_resemble_nothing(runner: EmulatedRunner) -> None:
    case = make_case(
        np.random.default_rng(8), visual=90, text=8, keep=0.4, head_dim=16, data_type="float32", clusters=5
    )
    case.value *= np.float32(5e-20)  # the product of two such norms' reciprocals is not a float
    kept = runner(case)
    case.options = replace(case.options, penalty=0.0)  # ranks by magnitude alone, as where nothing resembles anything
    assert case.judge(kept) == 0


def test_more_text_than_num_kept_stays_within_the_output(default: EmulatedRunner) -> None:
    case = make_case(np.random.default_rng(6), visual=20, text=30, keep=0.5)
    case.shape = replace(case.shape, num_kept=7)
    np.testing.assert_array_equal(default(case)[0], np.flatnonzero(~case.is_visual[0])[:7])


VALID = SelectionShape(batch=1, heads=4, kv_heads=2, tokens=10, head_dim=16, num_kept=5, data_type="float16")
SOMEWHERE = SelectionAddresses(16, 16, 16, 16, 16, 16, 256)


@pytest.mark.parametrize("change", [{"heads": 3}, {"head_dim": 257}, {"num_kept": 11}, {"tokens": 1 << 21}])
def test_bad_sizes_are_refused(default: EmulatedRunner, change: dict[str, Any]) -> None:
    shape = replace(VALID, **change)
    assert default.kernels.workspace_bytes(shape, DEFAULTS) == 0
    with pytest.raises(BackendError, match="heads must be a multiple of kv_heads"):
        default.kernels.enqueue(shape, DEFAULTS, SOMEWHERE, 1 << 30, stream=0)


@pytest.mark.parametrize("change", [{"chunk": 0}, {"growth": 0}, {"penalty": -1.0}, {"penalty": float("nan")}])
def test_bad_options_are_refused(default: EmulatedRunner, change: dict[str, Any]) -> None:
    options = replace(DEFAULTS, **change)
    assert default.kernels.workspace_bytes(VALID, options) == 0
    with pytest.raises(BackendError, match="chunk and growth must be 1 or more"):
        default.kernels.enqueue(VALID, options, SOMEWHERE, 1 << 30, stream=0)


@pytest.mark.parametrize(
    ("change", "missing", "message"),
    [({"key": 0}, 0, "null"), ({"workspace": 16}, 0, "not aligned"), ({}, 1, "smaller than")],
)
def test_bad_memory_is_refused(default: EmulatedRunner, change: dict[str, int], missing: int, message: str) -> None:
    size = default.kernels.workspace_bytes(VALID, DEFAULTS) - missing
    with pytest.raises(BackendError, match=message):
        default.kernels.enqueue(VALID, DEFAULTS, replace(SOMEWHERE, **change), size, stream=0)


def test_the_emulator_sees_a_barrier_that_some_threads_miss(folder: Path) -> None:
    source = folder / "stuck.cu"
    source.write_text(
        "#include <cuda_runtime.h>\n"
        'extern "C" void run() {\n'
        "  cudaLaunchConfig_t config = {dim3(1), dim3(64), 0, nullptr};\n"
        "  void (*kernel)(int) = [](int) { if (threadIdx.x != 3) __syncthreads(); };\n"
        "  cudaLaunchKernelEx(&config, kernel, 0);\n"
        "}\n"
    )
    emulation = Path(__file__).parent / "emulation"
    library = folder / "stuck.so"
    command = ["g++", "-std=c++17", "-fPIC", "-shared", f"-I{emulation}", "-x", "c++", str(source)]
    subprocess.run([*command, str(emulation / "scheduler.cpp"), "-o", str(library)], check=True)
    call = f"import ctypes; ctypes.CDLL({str(library)!r}).run()"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "threads wait at different places" in done.stderr
