"""How far `iwp-export estimate` is off: decoding speeds against public measurements.

    python tests/benchmarks/estimate_check.py -o docs/benchmarks/estimate_check.json

Fits the shares of the peak bandwidth on some of the public figures, compares with the others, and fails if the constant
of `iwp_export.estimator.estimate` is not the fitted one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iwp_export.device.specs import DEVICES, GB, DeviceSpec
from iwp_export.estimator.estimate import BANDWIDTH, HEAD_BITS, WEIGHTS, Shape
from iwp_export.pruning.cost import PrefillCost
from iwp_export.view.terminal import table

WIDENING = 1.15
"""How much further than the fitted figures the range reaches: they are of one device and one runtime."""
ANSWER = 128
"""Tokens of an answer, which most sources do not say."""
MLC_BITS = 4.5
"""MLC's q4f16_1: a float16 scale for 32 weights, embedding and head quantised as well."""

SHAPES = {
    "Qwen3-VL-2B": (28, 2048, 6144, 2048, 1024, 151936),
    "Qwen3-VL-4B": (36, 2560, 9728, 4096, 1024, 151936),
    "Qwen3-VL-8B": (36, 4096, 12288, 4096, 1024, 151936),
    "Llama 3 8B": (32, 4096, 14336, 4096, 1024, 128256),
    "Llama 3.1 8B": (32, 4096, 14336, 4096, 1024, 128256),
    "Llama 3.2 3B": (28, 3072, 8192, 3072, 1024, 128256),
    "Llama 2 7B": (32, 4096, 11008, 4096, 4096, 32000),
    "Llama 2 13B": (40, 5120, 13824, 5120, 5120, 32000),
    "Qwen2.5 7B": (28, 3584, 18944, 3584, 512, 152064),
}
"""Layers and widths from the models' config.json, as `PrefillCost` has them."""

EDGE_LLM = "TensorRT-Edge-LLM 0.10.0, Performance Benchmarks"
EDGE_LLM_04 = "TensorRT-Edge-LLM 0.4.0, Performance Benchmarks"
SUPER = "NVIDIA blog on the Jetson Orin Nano Super Developer Kit, INT4 with MLC, as a public summary quotes it"
MLC_4090 = "github.com/mlc-ai/llm-perf-bench, pull request 1, int4"
LLAMA_CPP = "github.com/XiongjieDai/GPU-Benchmarks-on-LLM-Inference, README, Llama 3, F16 (llama.cpp, May 2024)"

ORIN, THOR, RTX = DEVICES["agx-orin"], DEVICES["thor"], DEVICES["rtx-4090"]
NANO, NANO_BEFORE = DEVICES["orin-nano"], replace(DEVICES["orin-nano"], bandwidth=68.0)


@dataclass(frozen=True)
class Measurement:
    """A public figure of decoding in tokens/s.

    Attributes:
        context: tokens of the prompt; where the source does not say, of a short one. Speeds are compared in the middle
            of `ANSWER` tokens after it; 512 tokens after none have the same middle as those after 192.
        bits, head_bits: of weights.
        fitted: whether the shares are fitted on it.
    """

    what: str
    device: DeviceSpec
    model: str
    context: int
    value: float
    source: str
    bits: float = MLC_BITS
    head_bits: float = MLC_BITS
    fitted: bool = False

    @property
    def at_peak(self) -> float:
        """Tokens/s at the whole bandwidth."""
        shape = Shape(PrefillCost(*SHAPES[self.model], 0, self.context), tied=False, tower=0)
        return self.device.bandwidth * GB / shape.step_bytes(0, 0, ANSWER, self.bits, self.head_bits)


def edge_llm(
    device: str, spec: DeviceSpec, model: str, context: int, value: float, fitted: bool = False
) -> Measurement:
    source = EDGE_LLM_04 if spec is THOR else EDGE_LLM
    return Measurement(device, spec, model, context, value, source, WEIGHTS["int4"], HEAD_BITS, fitted)


PUBLIC = (
    edge_llm("AGX Orin", ORIN, "Qwen3-VL-2B", 2048, 89, fitted=True),
    edge_llm("AGX Orin", ORIN, "Qwen3-VL-4B", 2048, 51),
    edge_llm("AGX Orin", ORIN, "Qwen3-VL-8B", 2048, 31, fitted=True),
    Measurement("Orin Nano Super", NANO, "Llama 3.1 8B", 64, 19.14, SUPER),
    Measurement("Orin Nano Super", NANO, "Llama 3.2 3B", 64, 43.07, SUPER),
    Measurement("Orin Nano Super", NANO, "Qwen2.5 7B", 64, 21.75, SUPER),
    Measurement("Orin Nano at 68 GB/s", NANO_BEFORE, "Llama 3.1 8B", 64, 14.0, SUPER),
    Measurement("Orin Nano at 68 GB/s", NANO_BEFORE, "Llama 3.2 3B", 64, 27.7, SUPER),
    Measurement("Orin Nano at 68 GB/s", NANO_BEFORE, "Qwen2.5 7B", 64, 14.2, SUPER),
    edge_llm("Thor", THOR, "Llama 3.1 8B", 383, 50.8),
    Measurement("RTX 4090", RTX, "Llama 2 7B", 64, 191.0, MLC_4090),
    Measurement("RTX 4090", RTX, "Llama 2 13B", 64, 108.8, MLC_4090),
    Measurement("RTX 4090", RTX, "Llama 3 8B", 192, 54.84, LLAMA_CPP, WEIGHTS["fp16"], HEAD_BITS),
)


def fit(measurements: Sequence[Measurement]) -> tuple[float, float]:
    """The range of shares that the fitted figures reach, wider on both sides."""
    reached = [each.value / each.at_peak for each in measurements if each.fitted]
    return round(min(reached) / WIDENING, 2), round(max(reached) * WIDENING, 2)


def compare(measurement: Measurement) -> dict[str, Any]:
    """A measurement beside its estimate; the error is that of the mean of the fitted shares."""
    middle = statistics.mean(each.value / each.at_peak for each in PUBLIC if each.fitted)
    low, high = (share * measurement.at_peak for share in BANDWIDTH)
    return {
        "what": f"{measurement.what}, {measurement.model}",
        "bits": measurement.bits,
        "measured": measurement.value,
        "low": round(low, 2),
        "high": round(high, 2),
        "error": round(middle * measurement.at_peak / measurement.value - 1, 3),
        "in_range": bool(low <= measurement.value <= high),
        "share_of_peak": round(measurement.value / measurement.at_peak, 3),
        "role": "fitted" if measurement.fitted else "checked",
        "source": measurement.source,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, compare, print; 1 if the package's constant is not the fitted one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args(argv)
    rows, fitted = [compare(each) for each in PUBLIC], fit(PUBLIC)
    names = ("what", "role", "measured", "low", "high", "error", "in_range", "share_of_peak")
    print(f"fitted: {fitted}\n{table([names, *([row[name] for name in names] for row in rows)])}")
    if args.output:
        command = "python tests/benchmarks/estimate_check.py -o docs/benchmarks/estimate_check.json"
        result = {"command": command, "unit": "tokens/s", "fitted": fitted, "widening": WIDENING, "public": rows}
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    if fitted != BANDWIDTH:
        print("iwp_export/estimator/estimate.py has other shares", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
