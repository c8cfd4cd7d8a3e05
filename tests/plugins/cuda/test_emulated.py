"""The kernels' own sources, compiled for the CPU and run thread by thread: the oracle's indices, in every form."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iwp_export.engine.kernels import (
    INCLUDES,
    MATRIX_TOKENS,
    SELECTS,
    NoKernels,
    SelectionAddresses,
    SelectionOptions,
    SelectionShape,
)
from iwp_export.errors import BackendError
from tests.plugins.conftest import Emulated
from tests.plugins.cuda.cases import DEFAULTS, adversarial_cases, covering, make_case, random_cases
from tests.plugins.cuda.runners import EMULATION, EmulatedRunner

FORMS: dict[str, dict[str, int]] = {
    "one block": {},
    "matrix": {"kOneBlockTokens": 0, "kTeamSlice": 16},
    "large": {"kOneBlockTokens": 0, "kMatrixTokens": 0, "kTeamSlice": 16},
}
"""The form that a size would choose, forced: lower thresholds let small inputs reach each form, and share them out to
several blocks."""

TEAM = 4
"""Multiprocessors where blocks wait for each other: as many blocks are under way at once."""

WAYS: dict[str, tuple[int, dict[str, int]]] = {
    "one block": (900, FORMS["one block"]),
    "one block, Turing's rounding": (750, {**FORMS["one block"], "BLOCK": 4}),
    "matrix, Ampere's rounding": (900, {**FORMS["matrix"], "BLOCK": 8, "EXTRA_BITS": 1}),
    "large, Hopper's rounding": (900, {**FORMS["large"], "BLOCK": 16, "EXTRA_BITS": 2}),
}


@pytest.fixture(scope="module")
def default(emulated: Emulated) -> EmulatedRunner:
    return EmulatedRunner(emulated(900))


@pytest.fixture(scope="module", params=WAYS)
def runner(request: pytest.FixtureRequest, emulated: Emulated) -> EmulatedRunner:
    architecture, settings = WAYS[request.param]
    return EmulatedRunner(emulated(architecture), **settings)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_the_oracle(emulated: Emulated, form: str) -> None:
    """Few and small cases; the tests marked slow have many, in every order and way of rounding."""
    runner = EmulatedRunner(emulated(900), **FORMS[form])
    for case in random_cases(6, largest=60):
        for one in (case, covering(case)):
            assert one.judge(runner(one, seed=1, multiprocessors=TEAM)) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "multiprocessors"), [(0, 132), (1, 1)])
def test_indices_equal_the_oracles(runner: EmulatedRunner, seed: int, multiprocessors: int) -> None:
    cases = random_cases(24, largest=150, seed=seed) if seed else adversarial_cases()
    ties = [gap for case in cases if (gap := case.judge(runner(case, seed=seed, multiprocessors=multiprocessors)))]
    assert len(ties) <= 1, f"{len(ties)} of {len(cases)} differ in a tie: more than rounding explains"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_coverage_equals_the_oracles(runner: EmulatedRunner, seed: int) -> None:
    cases = [covering(case) for case in (random_cases(24, largest=110, seed=seed) if seed % 2 else adversarial_cases())]
    ties = [gap for case in cases if (gap := case.judge(runner(case, seed=seed, multiprocessors=TEAM)))]
    assert len(ties) <= 1, f"{len(ties)} of {len(cases)} differ in a tie: more than rounding explains"


@pytest.mark.slow
def test_coverage_of_more_rows_than_threads(emulated: Emulated) -> None:
    case = covering(make_case(np.random.default_rng(12), visual=1190, text=3, keep=0.05, kv_heads=1, head_dim=16))
    for settings in FORMS.values():
        assert case.judge(EmulatedRunner(emulated(900), **settings)(case, multiprocessors=1)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 3, 9])
def test_rounds_that_stay_small_equal_the_oracles(runner: EmulatedRunner, chunk: int) -> None:
    for case in random_cases(12, largest=110, seed=4):
        case.options = replace(case.options, growth=1, chunk=chunk, penalty=5.0)
        assert case.judge(runner(case, seed=chunk, multiprocessors=TEAM)) == 0


@pytest.mark.slow
def test_samples_share_blocks_that_are_too_few_for_them(runner: EmulatedRunner) -> None:
    case = make_case(np.random.default_rng(13), visual=50, text=4, keep=0.4, batch=5, growth=1, chunk=1)
    for multiprocessors in (1, 3, 12):
        for one in (case, covering(case)):
            assert one.judge(runner(one, multiprocessors=multiprocessors)) == 0


def test_importance_schedule_and_penalty_do_not_matter_to_coverage(default: EmulatedRunner) -> None:
    case = covering(make_case(np.random.default_rng(14), visual=90, text=4, keep=0.4, clusters=9))
    kept = default(case)
    case.importance[:] = np.nan
    case.options = replace(case.options, chunk=7, growth=3, penalty=0.0, duplication_norm="minmax")
    np.testing.assert_array_equal(kept, default(case))


@pytest.mark.slow
def test_inputs_off_their_alignment(runner: EmulatedRunner) -> None:
    for case in random_cases(8, largest=100, seed=5):
        assert case.judge(runner(case, offset=1)) == 0
        assert covering(case).judge(runner(covering(case), offset=1, multiprocessors=TEAM)) == 0


@pytest.mark.slow
def test_heads_split_over_blocks_change_nothing(default: EmulatedRunner) -> None:
    case = make_case(np.random.default_rng(2), visual=200, text=8, keep=0.4, kv_heads=8, clusters=9)
    kept = default(case, multiprocessors=1)
    for multiprocessors in (8, 30, 1000):
        np.testing.assert_array_equal(kept, default(case, multiprocessors=multiprocessors, seed=multiprocessors))


@pytest.mark.slow
def test_order_of_threads_and_blocks_changes_nothing(runner: EmulatedRunner) -> None:
    case = make_case(np.random.default_rng(3), visual=140, text=8, keep=0.4, clusters=9, batch=2)
    for one in (case, replace(case, options=replace(case.options, growth=1)), covering(case)):
        kept = runner(one, multiprocessors=8)
        for seed in range(1, 5):
            np.testing.assert_array_equal(kept, runner(one, seed=seed, multiprocessors=seed))


@pytest.mark.slow
def test_sizes_that_choose_the_other_forms(default: EmulatedRunner) -> None:
    rng = np.random.default_rng(4)
    for visual, keep in ((1600, 0.2), (4200, 0.05)):
        case = make_case(rng, visual=visual, text=9, keep=keep, kv_heads=1, head_dim=16, clusters=50)
        assert case.judge(default(case, multiprocessors=132)) == 0
        case.shape = replace(case.shape, num_kept=9 + 60)
        small_rounds = replace(case, options=replace(case.options, chunk=16, growth=1))
        for one in (small_rounds, covering(case)):
            assert one.judge(default(one, multiprocessors=5)) == 0


def test_the_stand_in_knows_the_kernels_scratch_memory(default: EmulatedRunner) -> None:
    """An engine that is built without the kernels asks for what the stand-in says, and stores it."""
    rng = np.random.default_rng(9)
    for _ in range(300):
        shape, options = _drawn_shape(rng), _drawn_options(rng)
        assert 0 < default.kernels.workspace_bytes(shape, options) == NoKernels().workspace_bytes(shape, options)


def test_scratch_memory_for_a_shape_suffices_for_smaller_ones(default: EmulatedRunner) -> None:
    rng = np.random.default_rng(10)
    for _ in range(300):
        a, b = _drawn_shape(rng), _drawn_shape(rng)
        tokens = min(a.tokens, b.tokens)
        b = replace(a, batch=min(a.batch, b.batch), tokens=tokens, num_kept=min(a.num_kept, b.num_kept, tokens))
        options = _drawn_options(rng)
        assert default.kernels.workspace_bytes(b, options) <= default.kernels.workspace_bytes(a, options)


def test_coverage_beyond_the_matrix_holds_what_the_header_says(default: EmulatedRunner) -> None:
    shape = SelectionShape(batch=1, kv_heads=4, tokens=16384, head_dim=128, num_kept=4916, data_type="float16")
    columns = 4 * 16384 * 4916
    assert columns < default.kernels.workspace_bytes(shape, replace(DEFAULTS, select="coverage")) < 1.05 * columns


def _drawn_options(rng: np.random.Generator) -> SelectionOptions:
    return replace(DEFAULTS, penalty=float(rng.choice([0, 5])), select=str(rng.choice(list(SELECTS))))


def _drawn_shape(rng: np.random.Generator) -> SelectionShape:
    tokens = int(rng.choice([0, 1, 31, 577, 1537, MATRIX_TOKENS, MATRIX_TOKENS + 1, 17000, 1 << 20]))
    return SelectionShape(
        batch=int(rng.integers(0, 4)),
        kv_heads=int(rng.integers(1, 33)),
        tokens=tokens,
        head_dim=int(rng.integers(1, 257)),
        num_kept=int(rng.integers(0, tokens + 1)),
        data_type=str(rng.choice(["float16", "bfloat16", "float32"])),
    )


@pytest.mark.slow
def test_values_next_to_nothing_resemble_nothing(runner: EmulatedRunner) -> None:
    case = make_case(
        np.random.default_rng(8), visual=90, text=8, keep=0.4, head_dim=16, data_type="float32", clusters=5
    )
    case.value *= np.float32(5e-20)  # the product of two such norms' reciprocals is not a float
    kept = runner(case)
    case.options = replace(case.options, penalty=0.0)  # ranks by importance alone, as where nothing resembles anything
    assert case.judge(kept) == 0
    text = np.flatnonzero(~case.is_visual[0])
    first = np.flatnonzero(case.is_visual[0])[: case.shape.num_kept - text.size]  # there is nothing to explain
    covered = runner(covering(case), multiprocessors=TEAM)
    np.testing.assert_array_equal(covered[0], np.sort(np.concatenate([text, first])))


def test_more_text_than_num_kept_stays_within_the_output(default: EmulatedRunner) -> None:
    case = make_case(np.random.default_rng(6), visual=20, text=30, keep=0.5)
    case.shape = replace(case.shape, num_kept=7)
    np.testing.assert_array_equal(default(case)[0], np.flatnonzero(~case.is_visual[0])[:7])


VALID = SelectionShape(batch=1, kv_heads=2, tokens=10, head_dim=16, num_kept=5, data_type="float16")
SOMEWHERE = SelectionAddresses(16, 16, 16, 16, 16, 256)


@pytest.mark.parametrize(
    "change",
    [{"kv_heads": 0}, {"kv_heads": 4097}, {"head_dim": 257}, {"num_kept": 11}, {"tokens": 1 << 21}, {"batch": 65536}],
)
def test_bad_sizes_are_refused(default: EmulatedRunner, change: dict[str, Any]) -> None:
    shape = replace(VALID, **change)
    assert default.kernels.workspace_bytes(shape, DEFAULTS) == NoKernels().workspace_bytes(shape, DEFAULTS) == 0
    with pytest.raises(BackendError, match="kv_heads must be within 1 and 4096, head_dim within 1 and 256"):
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
        default.kernels.enqueue(VALID, DEFAULTS, SOMEWHERE._replace(**change), size, stream=0)


STUCK = {
    "threads wait at different places": ("if (threadIdx.x != 3) __syncthreads();", 1, 0),
    "blocks wait for what no block does": ("while (iwp::LoadCounter(&counter) == 0) iwp::SpinWait();", 2, 1),
    "a block waits for others": (
        "atomicAdd(&counter, 1u); while (iwp::LoadCounter(&counter) < 2) iwp::SpinWait();",
        2,
        0,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("message", STUCK)
def test_the_emulator_sees_threads_that_wait_in_vain(tmp_path: Path, message: str) -> None:
    body, blocks, together = STUCK[message]
    source = tmp_path / "stuck.cu"
    source.write_text(
        '#include "launch.h"\n'
        '#include "device.cuh"\n'
        "unsigned counter = 0;\n"
        'extern "C" void run() {\n'
        f"  void (*kernel)(int) = [](int) {{ {body} }};\n"
        f"  iwp::LaunchBlocks({together}, kernel, dim3({blocks}), 64, 0, nullptr, 0);\n"
        "}\n"
    )
    library = tmp_path / "stuck.so"
    includes = [f"-I{path}" for path in (EMULATION, *INCLUDES)]
    flags = ["-std=c++17", "-fPIC", "-shared", "-DIWP_EMULATION", "-DIWP_EMULATED_ARCH=900", *includes, "-x", "c++"]
    subprocess.run(["g++", *flags, str(source), str(EMULATION / "scheduler.cpp"), "-o", str(library)], check=True)
    call = f"import ctypes; ctypes.CDLL({str(library)!r}).run()"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr
