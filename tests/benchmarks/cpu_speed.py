"""Speed of an exported decoder on ONNX Runtime's CPU provider, against what its operation count promises and a rival.

    python tests/benchmarks/cpu_speed.py -o docs/benchmarks/cpu_speed.json

A language model of 12 layers x 768 with random weights takes a prompt of 576 visual and 32 text tokens, pruned at
layer 4. The rival is transformers' own `OnnxExporter(ort_fusions="cpu")` export of the same language model, which has
no pruning. The graphs run in turn, and each ratio is the median of the ratios of neighbouring runs: it holds on a
machine whose speed drifts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from calibration.random_checkpoint import IMAGE_TOKEN, write_processor
from iwp_export import api
from iwp_export.pruning.settings import PruningSettings
from tests.runtime.toy import build_decode, build_prompt

TEXT_TOKENS = 32
SETTINGS = PruningSettings(layer=4, keep=0.3)


@dataclass(frozen=True)
class Shape:
    """The language model and the prompt."""

    layers: int = 12
    hidden: int = 768
    heads: int = 12
    inner: int = 2048
    vocabulary: int = 32000
    grid: int = 24

    @property
    def visual(self) -> int:
        return self.grid**2

    @property
    def prompt(self) -> int:
        return self.visual + TEXT_TOKENS


def operations(shape: Shape, kept: int | None) -> float:
    """Multiply-adds of a prefill; `kept` tokens go on past the pruning layer, None prunes nothing."""
    projection, mlp = shape.hidden**2, 3 * shape.hidden * shape.inner

    def layer(projected: int, tokens: int) -> float:
        return projected * 3 * projection + tokens * (projection + mlp) + 2 * tokens**2 * shape.hidden

    head = shape.hidden * shape.vocabulary
    if kept is None:
        return shape.layers * layer(shape.prompt, shape.prompt) + head
    below, above = SETTINGS.layer, shape.layers - SETTINGS.layer - 1
    return below * layer(shape.prompt, shape.prompt) + layer(shape.prompt, kept) + above * layer(kept, kept) + head


def make_model(shape: Shape) -> Any:
    """A LLaVA with a small tower whose grid has `shape.visual` tokens."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=14 * shape.grid,
        patch_size=14,
        projection_dim=32,
    )
    text = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=4096,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config).eval()


def ours(model: Any, shape: Shape, folder: Path, threads: int) -> dict[str, Callable[[], object]]:
    """Calls of the exported decoder: prefill with everything kept and pruned, and a decode step after the former."""
    model.save_pretrained(folder / "checkpoint")
    write_processor(folder / "checkpoint", model.config)
    bundle = api.export(str(folder / "checkpoint"), folder / "model.bundle", SETTINGS)
    session = _session(bundle / "decoder.onnx", threads)
    features = np.random.default_rng(0).standard_normal((shape.visual, shape.hidden)).astype(np.float32)
    ids = np.concatenate([np.arange(5) + 9, np.full(shape.visual, IMAGE_TOKEN), np.arange(TEXT_TOKENS - 5) + 9])
    empty = [np.zeros((1, shape.heads, 0, shape.hidden // shape.heads), np.float32)] * (2 * shape.layers)

    def feeds(inputs: Any, features: np.ndarray, past: list[np.ndarray]) -> dict[str, np.ndarray]:
        names = [f"past_key_values.{i}.{part}" for i in range(shape.layers) for part in ("key", "value")]
        return {
            "input_ids": inputs.input_ids,
            "image_features": features,
            "feature_index": inputs.feature_index,
            "query_index": inputs.query_index,
            "position_ids": inputs.position_ids,
            "num_kept": np.array([inputs.num_kept]),
            **dict(zip(names, past, strict=True)),
        }

    whole = feeds(build_prompt(ids, IMAGE_TOKEN, SETTINGS, 1.0), features, empty)
    pruned = feeds(build_prompt(ids, IMAGE_TOKEN, SETTINGS), features, empty)
    decode = feeds(build_decode(7, shape.prompt), features[:1] * 0, session.run(None, whole)[1:-1])
    shorter = feeds(build_decode(7, shape.prompt), features[:1] * 0, session.run(None, pruned)[1:-1])
    return {
        "prefill": lambda: session.run(None, whole),
        "pruned prefill": lambda: session.run(None, pruned),
        "decode": lambda: session.run(None, decode),
        "pruned decode": lambda: session.run(None, shorter),
    }


def rival(model: Any, shape: Shape, folder: Path, threads: int) -> dict[str, Callable[[], object]]:
    """Calls of transformers' fused export of the same language model.

    `prefill` is an export with `logits_to_keep=1`; `generation prefill` is what `export_for_generation` writes, which
    computes the logits of all tokens.
    """
    from transformers import LlamaForCausalLM
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    plain = LlamaForCausalLM(model.config.text_config).eval()
    plain.model, plain.lm_head = model.model.language_model, model.lm_head
    exporter, config = OnnxExporter(), OnnxConfig(dynamic=True, ort_fusions="cpu")
    sample = torch.randint(0, 99, (1, 60))
    generation = {"input_ids": sample, "attention_mask": torch.ones_like(sample)}
    exporter.export_for_generation(plain, generation, config).save_pretrained(folder / "rival")
    prefill_inputs = {**generation, "use_cache": True, "logits_to_keep": 1}
    exporter.export(plain, prefill_inputs, config=config).save_pretrained(folder / "rival-last")
    first = _session(next((folder / "rival-last").glob("*.onnx")), threads)
    step = _session(folder / "rival" / "decode.onnx", threads)
    prompt = np.random.default_rng(0).integers(0, 99, (1, shape.prompt))
    known = {
        "input_ids": prompt,
        "position_ids": np.arange(shape.prompt)[None],
        "attention_mask": np.ones_like(prompt),
    }
    feeds = {value.name: known[value.name] for value in first.get_inputs()}
    caches = dict(zip((value.name for value in first.get_outputs()), first.run(None, feeds), strict=True))
    last = {"input_ids": prompt[:, :1], "position_ids": np.array([[shape.prompt]])}
    step_feeds = {
        value.name: last[value.name] if value.name in last else caches[value.name.removeprefix("input.")]
        for value in step.get_inputs()
    }
    stock = _session(folder / "rival" / "prefill.onnx", threads)
    stock_feeds = {value.name: known[value.name] for value in stock.get_inputs()}
    return {
        "prefill": lambda: first.run(None, feeds),
        "generation prefill": lambda: stock.run(None, stock_feeds),
        "decode": lambda: step.run(None, step_feeds),
    }


def _session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, all calls in turn in every round; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 1):
        for name, call in calls.items():
            repeat = 10 if "decode" in name else 1
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            if index:
                seconds[name].append((time.perf_counter() - start) / repeat)
    return seconds


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> float:
    return round(statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    shape = Shape(layers=args.layers)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model = make_model(shape)
        calls = ours(model, shape, Path(folder), args.threads)
        calls |= {f"rival {name}": call for name, call in rival(model, shape, Path(folder), args.threads).items()}
        del model
        seconds = measure(calls, args.rounds)
    kept = SETTINGS.num_keep(shape.visual) + TEXT_TOKENS
    promised = operations(shape, None) / operations(shape, kept)
    speedup = ratio(seconds, "prefill", "pruned prefill")
    result = {
        "command": "python tests/benchmarks/cpu_speed.py",
        "prompt": {"visual": shape.visual, "text": TEXT_TOKENS, "kept": kept},
        "median_seconds": {name: round(statistics.median(values), 5) for name, values in seconds.items()},
        "prefill_speedup_of_pruning": speedup,
        "speedup_promised_by_operations": round(promised, 3),
        "share_of_the_promise": round(speedup / promised, 3),
        "rival_over_ours": {
            "prefill, logits of the last token": ratio(seconds, "rival prefill", "prefill"),
            "prefill, as export_for_generation writes it": ratio(seconds, "rival generation prefill", "prefill"),
            "decode": ratio(seconds, "rival decode", "decode"),
        },
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": args.threads},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "onnxruntime")},
    }
    print(json.dumps(result, indent=2))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
