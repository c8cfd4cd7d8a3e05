"""The roofline: a phase takes as long as its products, or as its bytes, whichever is longer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from iwp_export.device.specs import DeviceSpec
from iwp_export.estimator.shape import LanguageShape, TowerShape


@dataclass(frozen=True)
class Share:
    """Which part of a peak is reached: seldom less than `low`, seldom more than `high`."""

    low: float
    typical: float
    high: float


COMPUTE = Share(0.46, 0.53, 0.61)
"""Of the peak of products, on Orin. Fitted by tests/benchmarks/estimate_check.py, which says on what."""
MEMORY = Share(0.6, 0.73, 0.89)
"""Of the peak bandwidth, fitted in the same place; it holds on other devices too."""
FITTED_ON = ("orin-nano", "orin-nx", "agx-orin")
"""Devices with the tensor cores that `COMPUTE` was fitted on."""
ELSEWHERE = Share(0.09, 0.53, 0.81)
"""Of the peak of products on other devices: from the least to the most that four public figures reach. The least is of
4-bit weights."""


@dataclass(frozen=True)
class Efficiency:
    """The shares that an estimate takes: of the products of the decoder and of the tower, and of the bandwidth."""

    compute: Share = COMPUTE
    memory: Share = MEMORY
    tower: Share = COMPUTE


@dataclass(frozen=True)
class Range:
    """A quantity at high, typical and low efficiency, ordered by size."""

    low: float
    typical: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.typical + other.typical, self.high + other.high)

    def times(self, factor: float) -> Range:
        """A multiple."""
        return Range(self.low * factor, self.typical * factor, self.high * factor)

    def inverse(self) -> Range:
        """Of a time, the rate."""
        return Range(1 / self.high, 1 / self.typical, 1 / self.low)


@dataclass(frozen=True)
class WeightFormat:
    """How weights are stored; products are taken in float16 all the same (weight-only quantisation).

    Attributes:
        name: as a user types it.
        body: bits of a weight of the decoder's layers, scales included.
        head: bits of a weight of embedding, head and vision tower.
        value: bytes of an activation and of a value in the cache.
    """

    name: str
    body: float
    head: float = 16
    value: int = 2


WEIGHTS: Mapping[str, WeightFormat] = {
    "fp16": WeightFormat("fp16", 16),
    "int8": WeightFormat("int8", 8),
    "int4": WeightFormat("int4", 4 + 16 / 128),
}
"""int8 has a scale a channel, int4 one of float16 for 128 weights; both leave embedding, head and tower in float16."""


def efficiency_of(device: DeviceSpec, weights: WeightFormat) -> Efficiency:
    """The shares for a device: fitted ones on Orin, elsewhere a range of products that is as wide as what is known."""
    if device.name in FITTED_ON:
        return Efficiency()
    low = COMPUTE.low if weights.body >= 16 else ELSEWHERE.low
    typical, high = ELSEWHERE.typical, ELSEWHERE.high
    return Efficiency(Share(low, typical, high), tower=Share(COMPUTE.low, typical, high))


@dataclass(frozen=True)
class Work:
    """What a phase multiplies and moves: multiply-adds and bytes of memory."""

    operations: float
    bytes: float

    def seconds(self, device: DeviceSpec, efficiency: Efficiency) -> Range:
        """How long it takes."""
        compute, memory = efficiency.compute, efficiency.memory
        at = [
            max(2 * self.operations / (device.fp16 * 1e12 * c), self.bytes / (device.bandwidth * 1e9 * m))
            for c, m in ((compute.high, memory.high), (compute.typical, memory.typical), (compute.low, memory.low))
        ]
        return Range(*at)

    def bound(self, device: DeviceSpec, efficiency: Efficiency) -> str:
        """Which of the two takes longer at typical efficiency: `compute` or `memory`."""
        products = 2 * self.operations / (device.fp16 * 1e12 * efficiency.compute.typical)
        return "compute" if products >= self.bytes / (device.bandwidth * 1e9 * efficiency.memory.typical) else "memory"


@dataclass(frozen=True)
class Prompt:
    """What is asked: tokens of the images, of text and of the answer, and what pruning leaves.

    Attributes:
        visual, text, new: tokens; `visual` of all images.
        layer, kept: visual tokens that go on from that layer; `kept` equals `visual` without pruning.
        tiles: squares that the tower sees.
    """

    visual: int
    text: int
    new: int
    layer: int
    kept: int
    tiles: int = 1

    def cached(self, layers: int, new: float) -> float:
        """Tokens in the caches of all layers once `new` tokens of the answer are there."""
        full, left = self.visual + self.text + new, self.kept + self.text + new
        return self.layer * full + (layers - self.layer) * left


def cache_bytes(language: LanguageShape, prompt: Prompt, weights: WeightFormat, new: float) -> float:
    """Bytes of the key/value caches once `new` tokens of the answer are there."""
    return prompt.cached(language.layers, new) * 2 * language.key_value * weights.value


def vision_work(tower: TowerShape | None, prompt: Prompt, weights: WeightFormat) -> Work:
    """The tower and its projector, on every tile; none for a language model alone."""
    if tower is None or prompt.tiles == 0:
        return Work(0, 0)
    return Work(prompt.tiles * tower.operations, tower.weights * weights.head / 8)


def prefill_work(language: LanguageShape, prompt: Prompt, weights: WeightFormat) -> Work:
    """The prompt through the decoder, with the logits of its last token; choosing tokens is not counted."""
    operations = language.prefill(prompt.visual, prompt.text).operations(prompt.layer, prompt.kept)
    return Work(operations, _weight_bytes(language, weights) + cache_bytes(language, prompt, weights, 0))


def decode_work(language: LanguageShape, prompt: Prompt, weights: WeightFormat) -> Work:
    """The middle one of the answer's steps: every weight once, and the caches."""
    middle = prompt.new / 2
    products = language.body + language.head + 2 * language.query * prompt.cached(language.layers, middle)
    return Work(products, _weight_bytes(language, weights) + cache_bytes(language, prompt, weights, middle))


def _weight_bytes(language: LanguageShape, weights: WeightFormat) -> float:
    """Bytes of weights that a pass through the decoder reads."""
    return (language.body * weights.body + language.head * weights.head) / 8
