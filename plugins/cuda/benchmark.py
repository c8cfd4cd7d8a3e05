"""Checks and times the kernels on this machine's GPU and writes the figures as JSON. Run from the repository's root:
python -m plugins.cuda.benchmark -o docs/benchmarks/select_tokens_h200.json"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from iwp_export.device.gpu import find_gpu
from iwp_export.engine.kernels import SelectionOptions, SelectionShape, find_kernels
from iwp_export.pruning.settings import PruningSettings, chunk_schedule

WARM_UP = 10
REPEATS = 100
COLD_BYTES = 256 << 20
"""Inputs of a cold measurement rotate through this much memory, several times any GPU's cache."""

FACTORS = {"dual_weight": 2, "value": 1, "key": 1, "kernel": 1}
"""Inputs of keys or values that a similarity compares."""

FIGURES: dict[str, dict[str, Any]] = {
    "llava 1.5: 576 + 32 tokens, 32 kv heads": {"visual": 576, "kv_heads": 32},
    "onevision: 2,880 + 32 tokens, 4 kv heads": {"visual": 2880, "kv_heads": 4},
    "qwen2.5-vl: 1,024 + 32 tokens, 4 kv heads": {"visual": 1024, "kv_heads": 4},
    "video: 16,384 + 32 tokens, 4 kv heads": {"visual": 16384, "kv_heads": 4},
}


SELECTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "chunk 1, growth 1": {"chunk": 1, "growth": 1},
    "coverage": {"select": "coverage"},
}

JUDGED_TOKENS = 4096
"""Up to here a selection of many steps is held against the numpy oracle, which takes minutes beyond."""


def roofline(shape: SelectionShape, options: SelectionOptions, visual: int) -> dict[str, float]:
    """The least that any implementation moves and computes: inputs read once, only the pairs that a round needs.

    Returns:
        `bytes`, `operations`, and `pair_operations`, their part that tensor cores can take. Coverage also takes the
        columns so far off each new one.
    """
    states = FACTORS[options.similarity]
    element = 4 if shape.data_type == "float32" else 2
    row = shape.kv_heads * shape.head_dim
    moved = states * row * shape.tokens * element + 2 * 4 * shape.tokens + 8 * shape.num_kept
    norms = 2 * states * row * visual
    budget = shape.num_kept - (shape.tokens - visual)
    covers = options.select == "coverage"
    pairs = chosen = products = 0
    for size in chunk_schedule(budget, *((1, 1) if covers else (options.chunk, options.growth))):
        products += chosen * (visual - chosen - 1) if covers and chosen + 1 < budget else 0
        chosen += size
        pairs += size * (visual - chosen) if chosen < budget else 0
    pair_operations = 2 * states * row * pairs
    operations = norms + pair_operations + 2 * products
    one = {"bytes": moved, "operations": operations, "pair_operations": pair_operations}
    return {name: shape.batch * count for name, count in one.items()}


def median_us(work: Callable[[], object], repeats: int = REPEATS) -> dict[str, float]:
    """Median and spread of the time between CUDA events around `work`, in microseconds."""
    import torch

    for _ in range(WARM_UP):
        work()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end))
    tenths = statistics.quantiles(times, n=10)
    return {"median": statistics.median(times), "p10": tenths[0], "p90": tenths[-1]}


def captured(work: Callable[[], object]) -> Callable[[], object]:
    """`work` as the replay of a CUDA graph."""
    import torch

    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def ceilings() -> dict[str, float]:
    """What this device reaches: a large copy (bytes read and written a second), a large fp16 matrix product."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = median_us(lambda: target.copy_(source), 20)["median"]
    a = torch.randn(8192, 8192, dtype=torch.float16, device="cuda")
    product = median_us(lambda: a @ a, 20)["median"]
    return {"bytes_per_s": 2 * source.numel() / copy * 1e6, "flop_per_s": 2 * 8192**3 / product * 1e6}


def measure(name: str, sizes: dict[str, Any], selection: str, runner: Any, top: dict[str, float]) -> dict[str, Any]:
    """One case: equality with the oracle, times warm and cold, on a stream and replayed, and the torch loop's."""
    import torch

    from iwp_export.pruning.torch_select import kept_index
    from tests.plugins.cuda.cases import make_case

    options = SELECTIONS[selection]
    rng = np.random.default_rng(0)
    case = make_case(rng, text=32, keep=0.3, head_dim=128, clusters=100, name=name, **sizes, **options)
    kept = runner(case)
    gap = case.judge(kept) if sizes["visual"] <= JUDGED_TOKENS or not options else None
    buffers = runner.upload(case)
    sets = [buffers, *(runner.upload(case) for _ in range(COLD_BYTES // (2 * buffers["key"].numel())))]

    def all_sets() -> None:
        for one in sets:
            runner.enqueue(case, one)

    half = [torch.from_numpy(x).half().cuda() for x in (case.key, case.value)]
    others = [torch.from_numpy(x).cuda() for x in (case.importance, case.is_visual)]
    loop = (others[0], *half, others[1], case.shape.num_kept, PruningSettings(**options))
    by_torch = kept_index(*loop).cpu().numpy()
    cold = median_us(captured(all_sets), 20)
    least = roofline(case.shape, case.options, sizes["visual"])
    floor = max(least["bytes"] / top["bytes_per_s"], least["pair_operations"] / top["flop_per_s"]) * 1e6
    result = {
        "case": name,
        "selection": selection,
        "shape": asdict(case.shape),
        "gap_to_oracle": gap,
        "tokens_that_torch_keeps_not": int((~np.isin(kept[0], by_torch[0])).sum()),
        "workspace_bytes": runner.kernels.workspace_bytes(case.shape, case.options),
        "stream_us": median_us(lambda: runner.enqueue(case, buffers)),
        "graph_us": median_us(captured(lambda: runner.enqueue(case, buffers))),
        "graph_cold_us": {key: value / len(sets) for key, value in cold.items()},
        "torch_loop_us": median_us(lambda: kept_index(*loop), 20 if not options else 3),
        "roofline": {**least, "us": floor},
    }
    result["speed_up_over_torch"] = result["torch_loop_us"]["median"] / result["graph_us"]["median"]
    decode = replace(case.shape, tokens=1, num_kept=1)
    one = {**buffers, "kept": buffers["kept"][:, :1].clone()}
    step = replace(case, shape=decode)
    result["decode_step_graph_us"] = median_us(captured(lambda: runner.enqueue(step, one)))
    return result


def main() -> int:
    """Measure from the command line; non-zero exit where the tests fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    import torch

    from tests.plugins.cuda.runners import CudaRunner

    gpu = find_gpu()
    if gpu is None or not torch.cuda.is_available():
        print("benchmark: no NVIDIA GPU here; there is nothing to measure", file=sys.stderr)
        return 1
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/plugins/cuda/test_gpu.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    print(tests.stdout)
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"]
    report: dict[str, Any] = {
        "command": " ".join(["python", "-m", "plugins.cuda.benchmark", *sys.argv[1:]]),
        "device": subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip(),
        "sm": gpu.sm,
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()},
        "tests": {"exit_code": tests.returncode, "summary": tests.stdout.strip().splitlines()[-1:]},
        "ceilings": ceilings(),
    }
    runner = CudaRunner(find_kernels(gpu))
    report["cases"] = [
        measure(name, sizes, selection, runner, report["ceilings"])
        for name, sizes in FIGURES.items()
        for selection in SELECTIONS
    ]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")
    for row in report["cases"]:
        times = {
            key: round(row[key]["median"], 1) for key in ("stream_us", "graph_us", "graph_cold_us", "torch_loop_us")
        }
        print(row["case"], row["selection"], times, f"roofline {row['roofline']['us']:.1f} us")
    return int(tests.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
