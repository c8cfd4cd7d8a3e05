"""Time and memory of exporting a checkpoint of a 7B model's shape, and a check of what was written.

    python -m calibration.random_checkpoint build/llava-7b-random
    python tests/benchmarks/export_7b.py build/llava-7b-random -o docs/benchmarks/export_7b.json

The first command's `--family llava_next` gives LLaVA-NeXT-7B's shape in the place of LLaVA-1.5-7B's; the second takes a
checkpoint of either.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.05


def measure_command(arguments: list[str]) -> dict[str, Any]:
    """Run Python in a process of its own; its RssAnon is sampled: mapped file pages do not count as its memory."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments])
    peak = 0
    while process.poll() is None:
        peak = max(peak, _anonymous_bytes(process.pid))
        time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{shlex.join(arguments)} failed with exit code {process.returncode}")
    return {"seconds": round(seconds, 1), "peak_rss_anon_bytes": peak}


def check_graphs(bundle: Path) -> dict[str, Any]:
    """onnx's checker, and its shape inference in strict mode, on both graphs."""
    import onnx

    report = {}
    for name in ("vision", "decoder"):
        path = bundle / f"{name}.onnx"
        onnx.checker.check_model(str(path))
        with tempfile.TemporaryDirectory() as folder:
            inferred = Path(folder) / "inferred.onnx"
            onnx.shape_inference.infer_shapes_path(str(path), str(inferred), strict_mode=True, data_prop=True)
            graph = onnx.load(inferred, load_external_data=False).graph
        typed = {value.name for value in (*graph.value_info, *graph.output)}
        outputs = [output for node in graph.node for output in node.output if output]
        report[name] = {
            "nodes": len(graph.node),
            "values_without_inferred_shape": sum(output not in typed for output in outputs),
            "weights_bytes": (bundle / f"{name}.weights").stat().st_size,
        }
    return report


def _anonymous_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--layer", type=int, default=4, help="pruning layer (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.checkpoint.parent) as folder:
        bundle = Path(folder) / "7b.bundle"
        options = ["--keep", "0.3", "--layer", str(args.layer), "-o", str(bundle)]
        result = measure_command(["-m", "iwp_export.cli.main", str(args.checkpoint), *options])
        result |= {"graphs": check_graphs(bundle)}
    result |= {
        "command": "python tests/benchmarks/export_7b.py CHECKPOINT -o JSON",
        "family": json.loads((args.checkpoint / "config.json").read_text())["model_type"],
        "checkpoint_bytes": sum(file.stat().st_size for file in args.checkpoint.glob("*.safetensors")),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "checker_peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "onnx", "onnx-ir")},
    }
    print(json.dumps(result, indent=2))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
