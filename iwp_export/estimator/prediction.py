"""What a prompt would take on a device, with and without pruning."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from iwp_export.device.specs import DeviceSpec
from iwp_export.estimator.roofline import (
    WEIGHTS,
    Efficiency,
    Prompt,
    Range,
    WeightFormat,
    cache_bytes,
    decode_work,
    efficiency_of,
    prefill_work,
    vision_work,
)
from iwp_export.estimator.shape import ModelShape


@dataclass(frozen=True)
class Side:
    """One of the two: every visual token kept, or pruned.

    Attributes:
        visual_tokens: after the pruning layer.
        vision, prefill, step: seconds of the tower, the prompt and one step of the answer.
        first_token: seconds to the first token of the answer: tower and prompt.
        total: seconds to its last.
        tokens_per_second: of the steps.
        decode_share: part of `total` that the steps take, at typical efficiency.
        bound: by phase, whether it waits for `compute` or `memory`.
        cache_bytes: of the caches at the end of the answer.
        activation_bytes: of the widest values of a layer, for the whole prompt.
        memory_bytes: with the weights.
    """

    visual_tokens: int
    vision: Range
    prefill: Range
    step: Range
    first_token: Range
    total: Range
    tokens_per_second: Range
    decode_share: float
    bound: dict[str, str]
    cache_bytes: int
    activation_bytes: int
    memory_bytes: int


@dataclass(frozen=True)
class Estimate:
    """An estimate of one prompt on one device.

    Attributes:
        model, settings: their names: of the model, and of where the pruning settings come from.
        weights_bytes: of the whole model.
        smaller: the largest of the smaller kinds of weights with which it would fit, where it does not; or empty.
        smaller_bytes: of those weights.
    """

    model: str
    settings: str
    device: DeviceSpec
    weights: WeightFormat
    prompt: Prompt
    efficiency: Efficiency
    weights_bytes: int
    unpruned: Side
    pruned: Side
    smaller: str = ""
    smaller_bytes: int = 0

    @property
    def fits(self) -> bool:
        """Whether the pruned model fits into the device's usable memory."""
        return self.pruned.memory_bytes <= self.device.usable

    def speedup(self, phase: str) -> float:
        """How many times as fast pruning makes a phase of `Side`, at typical efficiency."""
        after: Range = getattr(self.pruned, phase)
        before: Range = getattr(self.unpruned, phase)
        return before.typical / after.typical if after.typical else 1.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: seconds, bytes, and the ratios."""
        phases = ("prefill", "first_token", "step", "total")
        values = asdict(self)
        values["device"] |= {"usable": self.device.usable, "modes": list(self.device.modes)}
        values["device"]["sources"] = list(self.device.sources)
        return values | {"fits": self.fits, "speedup": {phase: round(self.speedup(phase), 3) for phase in phases}}


def predict(
    shape: ModelShape,
    prompt: Prompt,
    device: DeviceSpec,
    weights: WeightFormat,
    *,
    efficiency: Efficiency | None = None,
    model: str = "model",
    settings: str = "given",
) -> Estimate:
    """Estimate a prompt, pruned as it says and with all tokens kept.

    Args:
        shape: the model's.
        prompt: the prompt, the answer's length and the pruning.
        device: on which it runs.
        weights: how they are stored.
        efficiency: shares of the device's peaks; those of `efficiency_of` if left out.
        model, settings: names for the result.
    """
    efficiency = efficiency or efficiency_of(device, weights)
    whole = Prompt(prompt.visual, prompt.text, prompt.new, 0, prompt.visual, prompt.tiles)
    size = weights_bytes(shape, weights)
    before, after = (_side(shape, each, device, weights, efficiency, size) for each in (whole, prompt))
    estimate = Estimate(model, settings, device, weights, prompt, efficiency, size, before, after)
    return estimate if estimate.fits else _with_smaller(estimate, shape)


def _with_smaller(estimate: Estimate, shape: ModelShape) -> Estimate:
    """The estimate with the largest of the smaller kinds of weights that fits, if one does."""
    room = estimate.device.usable - (estimate.pruned.memory_bytes - estimate.weights_bytes)
    for name, weights in WEIGHTS.items():  # from large to small
        size = weights_bytes(shape, weights)
        if size < estimate.weights_bytes and size <= room:
            return replace(estimate, smaller=name, smaller_bytes=size)
    return estimate


def weights_bytes(shape: ModelShape, weights: WeightFormat) -> int:
    """Bytes of all weights in memory, without biases and norms."""
    language, tower = shape.language, shape.tower
    others = language.head + language.embedding + (tower.weights if tower else 0)
    return round((language.body * weights.body + others * weights.head) / 8)


def _side(
    shape: ModelShape, prompt: Prompt, device: DeviceSpec, weights: WeightFormat, efficiency: Efficiency, size: int
) -> Side:
    language = shape.language
    work = {
        "vision": vision_work(shape.tower, prompt, weights),
        "prefill": prefill_work(language, prompt, weights),
        "step": decode_work(language, prompt, weights),
    }
    shares = dict.fromkeys(work, efficiency) | {"vision": replace(efficiency, compute=efficiency.tower)}
    vision, prefill, step = (each.seconds(device, shares[name]) for name, each in work.items())
    first = vision + prefill
    steps = step.times(prompt.new - 1)  # the prefill gives the first token
    total = first + steps
    cached = round(cache_bytes(language, prompt, weights, prompt.new))
    active = _activation_bytes(shape, prompt, weights)
    return Side(
        visual_tokens=prompt.kept,
        vision=vision,
        prefill=prefill,
        step=step,
        first_token=first,
        total=total,
        tokens_per_second=step.inverse(),
        decode_share=steps.typical / total.typical,
        bound={name: each.bound(device, shares[name]) for name, each in work.items()},
        cache_bytes=cached,
        activation_bytes=active,
        memory_bytes=size + cached + active,
    )


def _activation_bytes(shape: ModelShape, prompt: Prompt, weights: WeightFormat) -> int:
    """The widest values that are there at once: two of the hidden size, queries, keys, values, both of the MLP."""
    language, tower = shape.language, shape.tower
    width = 2 * language.hidden + language.query + 2 * language.key_value + 2 * language.inner
    values = (prompt.visual + prompt.text) * width
    if tower is not None:
        values = max(values, prompt.tiles * tower.tokens * (5 * tower.hidden + tower.inner))
    return values * weights.value
