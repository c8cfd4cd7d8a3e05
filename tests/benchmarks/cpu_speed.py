"""Speed of an exported decoder on ONNX Runtime's CPU provider, against what its operation count promises and a rival.

    python tests/benchmarks/cpu_speed.py -o docs/benchmarks/cpu_speed.json

A language model of 12 layers x 768 with random weights takes a prompt of 576 visual and 32 text tokens, pruned at
layer 4. The rival is transformers' own `OnnxExporter(ort_fusions="cpu")` export of the same language model, which has
no pruning. The graphs run in turn, and each ratio is the median of the ratios of neighbouring runs: it holds on a
machine whose speed drifts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iwp_export.pruning.settings import PruningSettings
from tests.benchmarks.cpu_model import (
    TEXT_TOKENS,
    Decoder,
    Shape,
    make_model,
    measure,
    open_session,
    ratios,
    surroundings,
    write_model,
)
from tests.runtime.toy import build_decode

SETTINGS = PruningSettings(layer=4, keep=0.3)


def ours(checkpoint: Path, shape: Shape, threads: int) -> dict[str, Callable[[], object]]:
    """Calls of the exported decoder: prefill with everything kept and pruned, and a decode step after each."""
    decoder = Decoder(checkpoint, shape, SETTINGS, threads)
    calls: dict[str, Callable[[], object]] = {}
    for title, keep in (("", 1.0), ("pruned ", None)):
        calls[f"{title}prefill"] = decoder.prefill(keep)
        caches = decoder.session.run(None, decoder.prompt(keep))[1:-1]
        step = decoder.feeds(build_decode(7, shape.prompt), np.zeros((1, shape.hidden), np.float32), caches)
        calls[f"{title}decode"] = partial(decoder.session.run, None, step)
    return calls


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
    first = open_session(next((folder / "rival-last").glob("*.onnx")), threads)
    step = open_session(folder / "rival" / "decode.onnx", threads)
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
    stock = open_session(folder / "rival" / "prefill.onnx", threads)
    stock_feeds = {value.name: known[value.name] for value in stock.get_inputs()}
    return {
        "prefill": lambda: first.run(None, feeds),
        "generation prefill": lambda: stock.run(None, stock_feeds),
        "decode": lambda: step.run(None, step_feeds),
    }


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> float:
    return round(statistics.median(ratios(seconds, over, under)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    shape = Shape(layers=args.layers)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        calls = ours(write_model(shape, Path(folder)), shape, args.threads)
        model = make_model(shape)
        calls |= {f"rival {name}": call for name, call in rival(model, shape, Path(folder), args.threads).items()}
        del model
        seconds = measure(calls, args.rounds, {name: 10 for name in calls if "decode" in name})
    kept = SETTINGS.num_keep(shape.visual)
    promised = shape.cost.speedup(SETTINGS.layer, kept)
    speedup = ratio(seconds, "prefill", "pruned prefill")
    result = {
        "command": "python tests/benchmarks/cpu_speed.py",
        "prompt": {"visual": shape.visual, "text": TEXT_TOKENS, "kept": kept + TEXT_TOKENS},
        "median_seconds": {name: round(statistics.median(values), 5) for name, values in seconds.items()},
        "prefill_speedup_of_pruning": speedup,
        "speedup_promised_by_operations": round(promised, 3),
        "share_of_the_promise": round(speedup / promised, 3),
        "rival_over_ours": {
            "prefill, logits of the last token": ratio(seconds, "rival prefill", "prefill"),
            "prefill, as export_for_generation writes it": ratio(seconds, "rival generation prefill", "prefill"),
            "decode": ratio(seconds, "rival decode", "decode"),
        },
        "threads": args.threads,
        **surroundings(),
    }
    print(json.dumps(result, indent=2))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
