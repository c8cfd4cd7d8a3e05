"""Time, size and memory of building TensorRT-RTX engines on a CPU. The wider model takes up to 18 GB of memory.

python tests/benchmarks/rtx_build.py -o docs/benchmarks/rtx_build.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMMAND = "python tests/benchmarks/rtx_build.py -o docs/benchmarks/rtx_build.json"
SMALL = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
}
WIDE = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 6,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
MODELS: dict[str, tuple[dict[str, int], tuple[tuple[tuple[str, ...], int], ...]]] = {
    "12 layers of 768": (SMALL, ((("86", "89", "120"), 1), (("89",), 1), (("89",), 2))),
    "6 layers of 4096, LLaVA-1.5-7B's width": (WIDE, ((("89",), 1), (("89",), 2))),
}
"""The language model's sizes, and its builds: architectures, and optimisation profiles."""


def make_bundle(folder: Path, sizes: dict[str, int]) -> Path:
    """A LLaVA of random float16 weights with 32,000 words and a small vision tower."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    from calibration.random_checkpoint import IMAGE_TOKEN, write_checkpoint
    from iwp_export import api
    from iwp_export.pruning.settings import PruningSettings

    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
        projection_dim=64,
    )
    text = LlamaConfig(**sizes, vocab_size=32000, max_position_embeddings=4096)
    architectures = ["LlavaForConditionalGeneration"]
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN, architectures=architectures
    )
    write_checkpoint(folder / "checkpoint", config)
    return api.export(str(folder / "checkpoint"), folder / "bundle", PruningSettings(), dtype="float16")


def measure(bundle: Path, folder: Path, sms: tuple[str, ...], profiles: int) -> dict[str, Any]:
    """Build in a process of its own, which reports its seconds, its processor time and its peak memory."""
    code = f"""
import json, resource, time
from iwp_export import api
from iwp_export.engine.build import BuildSettings
start, cpu = time.perf_counter(), time.process_time()
settings = BuildSettings(target="rtx", sm={sms!r}, profiles={profiles})
api.build({str(bundle)!r}, {str(folder / "engine.plan")!r}, settings, force=True)
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([time.perf_counter() - start, time.process_time() - cpu, usage.ru_maxrss * 1024]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, cpu, peak = json.loads(done.stdout.splitlines()[-1])
    return {
        "sms": list(sms),
        "profiles": profiles,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_rss_bytes": peak,
        "plan_bytes": (folder / "engine.plan").stat().st_size,
        "vision_plan_bytes": (folder / "engine.vision.plan").stat().st_size,
    }


def measure_model(sizes: dict[str, int], builds: tuple[tuple[tuple[str, ...], int], ...]) -> dict[str, Any]:
    """Export one model and make its builds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = make_bundle(folder, sizes)
        load = os.getloadavg()[0]
        weights = (bundle / "decoder.weights").stat().st_size
        measured = [measure(bundle, folder, *build) for build in builds]
    return {"decoder_weights_bytes": weights, "load_average_before": round(load, 1), "builds": measured}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    models = {title: measure_model(*model) for title, model in MODELS.items()}
    report = {
        "command": COMMAND,
        "date": time.strftime("%Y-%m-%d"),
        "models": models,
        "weights": "random, float16, 32000 words; pruned at layer 4, keep 0.3",
        "shapes": "prompts up to 1088 tokens, context 4096",
        "versions": {n: importlib.metadata.version(n) for n in ("tensorrt-rtx", "onnx", "onnx-ir", "torch")},
        "machine": {
            "cpu": platform.machine(),
            "cpus": os.cpu_count(),
            "gpu": None,
            "python": platform.python_version(),
        },
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
