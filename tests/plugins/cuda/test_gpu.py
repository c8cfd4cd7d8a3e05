"""The kernels on a GPU: same indices as the oracle, the same in every run, inside a CUDA graph too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from iwp_export.device.gpu import find_gpu
from iwp_export.engine.kernels import check_kernels, find_kernels
from iwp_export.errors import BackendError
from tests.plugins.cuda.cases import Case, adversarial_cases, covering, make_case, random_cases
from tests.plugins.cuda.runners import CudaRunner


def _why_not() -> str:
    try:
        import torch
    except ImportError:
        return "no torch to hold GPU memory"
    gpu = find_gpu()
    if gpu is None or not torch.cuda.is_available():
        return "no NVIDIA GPU"
    try:
        check_kernels(gpu)
    except BackendError as error:
        return str(error)
    return ""


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(_why_not()), reason=_why_not())]

REPEATS = 20


@pytest.fixture(scope="module")
def runner() -> CudaRunner:
    gpu = find_gpu()
    assert gpu is not None
    return CudaRunner(find_kernels(gpu))


def _large_cases() -> list[Case]:
    rng = np.random.default_rng(11)
    return [
        make_case(rng, visual=576, text=32, keep=0.3, kv_heads=32, head_dim=128, clusters=60),
        make_case(rng, visual=2880, text=32, keep=0.3, kv_heads=4, head_dim=128, clusters=60),
        make_case(rng, visual=4096, text=0, keep=0.222, kv_heads=2, head_dim=64, clusters=60),
        make_case(rng, visual=16384, text=100, keep=0.111, kv_heads=2, head_dim=64, clusters=200),
        make_case(rng, visual=16384, text=0, keep=0.3, kv_heads=1, head_dim=64, data_type="float32"),
    ]


def _long_cases() -> list[Case]:
    """Selections of many steps, in which blocks wait for each other."""
    rng = np.random.default_rng(12)
    sizes: list[dict[str, Any]] = [
        {"visual": 576, "text": 32, "keep": 0.3, "kv_heads": 32, "head_dim": 128},
        {"visual": 2880, "text": 32, "keep": 0.3, "kv_heads": 4, "head_dim": 128},
        {"visual": 9000, "text": 32, "keep": 0.05, "kv_heads": 2, "head_dim": 64},
    ]
    loops = [make_case(rng, **size, clusters=60, chunk=1, growth=1) for size in sizes]
    return [*loops, *[covering(case) for case in loops]]


def test_random_cases_equal_the_oracle(runner: CudaRunner) -> None:
    cases = random_cases(1000, largest=700)
    gaps = [gap for case in cases if (gap := case.judge(runner(case)))]
    assert len(gaps) <= len(cases) // 100, f"{len(gaps)} of {len(cases)} differ in ties, up to {max(gaps):.2g}"


def test_random_cases_of_many_steps_equal_the_oracle(runner: CudaRunner) -> None:
    cases = random_cases(300, largest=2500, seed=1)
    for i, case in enumerate(cases):
        case.options = replace(case.options, growth=1, select="coverage" if i % 2 else "mmr")
    gaps = [gap for case in cases if (gap := case.judge(runner(case)))]
    assert len(gaps) <= len(cases) // 50, f"{len(gaps)} of {len(cases)} differ in ties, up to {max(gaps):.2g}"


ADVERSARIAL = [*adversarial_cases(), *map(covering, adversarial_cases())]


@pytest.mark.parametrize("case", [*ADVERSARIAL, *_large_cases(), *_long_cases()], ids=str)
def test_extreme_cases_equal_the_oracle(runner: CudaRunner, case: Case) -> None:
    case.judge(runner(case))


@pytest.mark.parametrize("case", [*_large_cases()[:4], *_long_cases()], ids=str)
def test_every_run_and_every_replay_gives_the_same_indices(runner: CudaRunner, case: Case) -> None:
    import torch

    buffers = runner.upload(case)
    runner.enqueue(case, buffers)
    first = buffers["kept"].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        runner.enqueue(case, buffers)
    for _ in range(REPEATS):
        buffers["kept"].fill_(-1)
        graph.replay()
        assert torch.equal(buffers["kept"], first)
        buffers["kept"].fill_(-1)
        buffers["workspace"].random_()  # what an earlier call left there must not matter
        runner.enqueue(case, buffers)
        assert torch.equal(buffers["kept"], first)
