"""Public measurements that `estimate_check.py` compares with, each with its source, and the shapes of their models."""

from __future__ import annotations

from dataclasses import dataclass, replace

from iwp_export.device.specs import DEVICES, DeviceSpec
from iwp_export.estimator.roofline import WEIGHTS, Prompt, WeightFormat, Work, decode_work, prefill_work
from iwp_export.estimator.shape import LanguageShape

QWEN3_VL = {
    "2B": LanguageShape(28, 2048, 6144, 2048, 1024, 151936, tied=True),
    "4B": LanguageShape(36, 2560, 9728, 4096, 1024, 151936, tied=True),
    "8B": LanguageShape(36, 4096, 12288, 4096, 1024, 151936),
}
LLAMA3_8B = LanguageShape(32, 4096, 14336, 4096, 1024, 128256)
LLAMA32_3B = LanguageShape(28, 3072, 8192, 3072, 1024, 128256, tied=True)
LLAMA2_7B = LanguageShape(32, 4096, 11008, 4096, 4096, 32000)
LLAMA2_13B = LanguageShape(40, 5120, 13824, 5120, 5120, 32000)
QWEN25_7B = LanguageShape(28, 3584, 18944, 3584, 512, 152064)
"""Shapes from the models' config.json."""

INT4, FP16 = WEIGHTS["int4"], WEIGHTS["fp16"]
MLC_INT4 = WeightFormat("int4, head too", 4.5, head=4.5)
"""MLC's q4f16_1: a float16 scale for 32 weights, embedding and head quantised as well."""

EDGE_LLM = "TensorRT-Edge-LLM 0.10.0, Performance Benchmarks"
EDGE_LLM_04 = "TensorRT-Edge-LLM 0.4.0, Performance Benchmarks"
DART = "TensorRT-Edge-LLM, Visual-Token Pruning (DART): Qwen3-VL-4B, FP16, 1,995-token prefill"
SUPER = "NVIDIA blog on the Jetson Orin Nano Super Developer Kit, INT4 with MLC, as a public summary quotes it"
MLC_4090 = "github.com/mlc-ai/llm-perf-bench, pull request 1, int4"
LLAMA_CPP = "github.com/XiongjieDai/GPU-Benchmarks-on-LLM-Inference, README, Llama 3, F16 (llama.cpp, May 2024)"

ANSWER = 128
"""Tokens of an answer, which most sources do not say."""
RTX = DEVICES["rtx-4090"]
NANO, NANO_BEFORE = DEVICES["orin-nano"], replace(DEVICES["orin-nano"], bandwidth=68.0)


@dataclass(frozen=True)
class Measurement:
    """A public figure: `value` in ms of a prefill, or in tokens/s of decoding.

    Attributes:
        context: tokens of the prompt; where the source does not say, of a short one. A decoding speed is compared in
            the middle of `ANSWER` tokens after it; 512 tokens after none have the same middle as those after 192.
        fitted: whether the shares are fitted on it.
    """

    what: str
    device: DeviceSpec
    shape: LanguageShape
    weights: WeightFormat
    phase: str
    context: int
    value: float
    source: str
    fitted: bool = False

    @property
    def work(self) -> Work:
        """What was measured, as the roofline counts it."""
        prompt = Prompt(0, self.context, ANSWER, 0, 0)
        return (prefill_work if self.phase == "prefill" else decode_work)(self.shape, prompt, self.weights)

    @property
    def seconds(self) -> float:
        """The measured time."""
        return self.value / 1000 if self.phase == "prefill" else 1 / self.value


def edge_llm(size: str, prefill: float, decode: float, fitted: bool) -> list[Measurement]:
    """AGX Orin's two figures of a Qwen3-VL."""
    what, orin = f"AGX Orin, Qwen3-VL-{size} int4", DEVICES["agx-orin"]
    shape = QWEN3_VL[size]
    return [
        Measurement(what, orin, shape, INT4, phase, 2048, value, EDGE_LLM, fitted)
        for phase, value in (("prefill", prefill), ("decode", decode))
    ]


def decoding(what: str, device: DeviceSpec, shape: LanguageShape, value: float, source: str) -> Measurement:
    """A figure of decoding with MLC, after a short prompt."""
    return Measurement(what, device, shape, MLC_INT4, "decode", 64, value, source)


PUBLIC = (
    *edge_llm("2B", 298, 89, True),
    *edge_llm("4B", 758, 51, False),
    *edge_llm("8B", 1388, 31, True),
    decoding("Orin Nano Super, Llama 3.1 8B int4", NANO, LLAMA3_8B, 19.14, SUPER),
    decoding("Orin Nano Super, Llama 3.2 3B int4", NANO, LLAMA32_3B, 43.07, SUPER),
    decoding("Orin Nano Super, Qwen2.5 7B int4", NANO, QWEN25_7B, 21.75, SUPER),
    decoding("Orin Nano at 68 GB/s, Llama 3.1 8B int4", NANO_BEFORE, LLAMA3_8B, 14.0, SUPER),
    decoding("Orin Nano at 68 GB/s, Llama 3.2 3B int4", NANO_BEFORE, LLAMA32_3B, 27.7, SUPER),
    decoding("Orin Nano at 68 GB/s, Qwen2.5 7B int4", NANO_BEFORE, QWEN25_7B, 14.2, SUPER),
    Measurement("Thor, Llama 3.1 8B int4", DEVICES["thor"], LLAMA3_8B, INT4, "prefill", 383, 215.5, EDGE_LLM_04),
    Measurement("Thor, Llama 3.1 8B int4", DEVICES["thor"], LLAMA3_8B, INT4, "decode", 383, 50.8, EDGE_LLM_04),
    decoding("RTX 4090, Llama 2 7B int4", RTX, LLAMA2_7B, 191.0, MLC_4090),
    decoding("RTX 4090, Llama 2 13B int4", RTX, LLAMA2_13B, 108.8, MLC_4090),
    *(
        Measurement(
            "RTX 4090, Llama 3 8B fp16", RTX, LLAMA3_8B, FP16, "prefill", tokens, tokens / speed * 1000, LLAMA_CPP
        )
        for tokens, speed in ((512, 9382.00), (1024, 9056.26), (4096, 6531.36))
    ),
    Measurement("RTX 4090, Llama 3 8B fp16", RTX, LLAMA3_8B, FP16, "decode", 192, 54.84, LLAMA_CPP),
)
