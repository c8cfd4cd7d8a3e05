"""What a model needs on a device: memory, bytes of a decode step, operations of a prefill; pruned and with all tokens.

Decoding waits for the memory, so bytes and bandwidth give its speed. A prefill's time follows from neither:
docs/estimate.md has how far estimates of it were off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from iwp_export.device.specs import GB, DeviceSpec, find_device
from iwp_export.errors import CheckpointError, SettingsError
from iwp_export.exporter.checkpoint import open_checkpoint
from iwp_export.exporter.settings_source import check_request, resolve
from iwp_export.pruning.cost import PrefillCost
from iwp_export.pruning.settings import PruningSettings
from iwp_export.view.figures import percent
from iwp_export.view.view import Column, Table, View

WEIGHTS: Mapping[str, float] = {"fp16": 16, "int8": 8, "int4": 4 + 16 / 128}
"""Bits of a weight of the decoder's layers, from large to small; int4 has a scale of float16 for 128 weights."""
HEAD_BITS = 16
"""Of a weight of embedding, head and vision tower."""
VALUE_BYTES = 2
"""Of a value in the caches."""
BANDWIDTH = (0.6, 0.89)
"""Shares of the peak bandwidth between which decoding lies, from public figures: tests/benchmarks/estimate_check.py."""


@dataclass(frozen=True)
class Prompt:
    """What is asked, and what pruning leaves of it.

    Attributes:
        visual, text, new: tokens of the images, of text and of the answer.
        layer, kept: visual tokens that go on from that layer; `kept` equals `visual` without pruning.
    """

    visual: int
    text: int
    new: int
    layer: int
    kept: int


@dataclass(frozen=True)
class Shape:
    """A vision-language model, by its configuration, and the tokens of a prompt.

    Attributes:
        cost: widths and layers of the language model, and the prompt's tokens.
        tied: whether embedding and head are one tensor.
        tower: weights of vision tower and projector.
    """

    cost: PrefillCost
    tied: bool
    tower: int

    @property
    def body(self) -> int:
        """Weights of the decoder's layers with their gated MLPs, without biases and norms."""
        one = self.cost
        return one.layers * (one.hidden * (2 * one.query + 2 * one.key_value) + 3 * one.hidden * one.inner)

    @property
    def head(self) -> int:
        """Weights of the head."""
        return self.cost.hidden * self.cost.vocabulary

    def weight_bytes(self, bits: float) -> int:
        """Bytes of all weights in memory, with so many bits for one of the layers."""
        return round((self.body * bits + (self.head * (1 if self.tied else 2) + self.tower) * HEAD_BITS) / 8)

    def cache_bytes(self, layer: int, kept: int, new: float) -> int:
        """Bytes of the key/value caches once `new` tokens of the answer are there."""
        full, left = (count + self.cost.text + new for count in (self.cost.visual, kept))
        tokens = layer * full + (self.cost.layers - layer) * left
        return round(tokens * 2 * self.cost.key_value * VALUE_BYTES)

    def step_bytes(self, layer: int, kept: int, new: int, bits: float, head_bits: float = HEAD_BITS) -> int:
        """Bytes that the middle one of an answer's steps reads: the decoder's weights once, and the caches."""
        return round((self.body * bits + self.head * head_bits) / 8) + self.cache_bytes(layer, kept, new / 2)

    def side(self, layer: int, kept: int, new: int, device: DeviceSpec, bits: float) -> Side:
        """What a prompt and its answer need on a device, with so many bits for a weight of the layers."""
        step, cache = self.step_bytes(layer, kept, new, bits), self.cache_bytes(layer, kept, new)
        low, high = (share * device.bandwidth * GB / step for share in BANDWIDTH)
        operations = self.cost.operations(layer, kept)
        return Side(operations, step, (low, high), cache, self.weight_bytes(bits) + cache)


def tower_weights(config: Any) -> int:
    """Weights of a tower of square tiles, up to the layer that is read, and of the projector's two matrices.

    Args:
        config: a transformers configuration with a `text_config` and a `vision_config`.

    Raises:
        CheckpointError: its tower is of another kind.
    """
    tower = config.vision_config
    try:
        chosen = config.vision_feature_layer
        chosen = [chosen] if isinstance(chosen, int) else list(chosen)
        layers = max(index if index >= 0 else tower.num_hidden_layers + 1 + index for index in chosen)
        positions = (tower.image_size // tower.patch_size) ** 2 + (tower.model_type == "clip_vision_model")
        hidden, out = tower.hidden_size, config.text_config.hidden_size
        body = layers * (4 * hidden**2 + 2 * hidden * tower.intermediate_size)
        return int(body + (3 * tower.patch_size**2 + positions + len(chosen) * out) * hidden + out**2)
    except (AttributeError, TypeError) as error:
        raise CheckpointError(f"the vision tower of {config.model_type} has no estimate yet ({error})") from error


@dataclass(frozen=True)
class Side:
    """One of the two: every visual token kept, or pruned.

    Attributes:
        prefill_operations: multiply-adds of the language model's prefill.
        step_bytes: that a step of decoding reads.
        tokens_per_second: of decoding, the lowest and the highest.
        cache_bytes: of the caches at the end of the answer.
        memory_bytes: with the weights.
    """

    prefill_operations: int
    step_bytes: int
    tokens_per_second: tuple[float, float]
    cache_bytes: int
    memory_bytes: int


@dataclass(frozen=True)
class Estimate:
    """An estimate of one prompt on one device.

    Attributes:
        model, settings: their names: of the model, and of where the pruning settings come from.
        device: its figures. `weights`: a name of `WEIGHTS`. `prompt`: what is asked.
        weights_bytes: of the whole model.
        smaller: the largest kind of weights with which it would fit, if it does not; None if none is small enough.
    """

    model: str
    settings: str
    device: DeviceSpec
    weights: str
    prompt: Prompt
    weights_bytes: int
    unpruned: Side
    pruned: Side
    smaller: str | None = None

    @property
    def fits(self) -> bool:
        """Whether the pruned model fits into the device's usable memory."""
        return self.pruned.memory_bytes <= self.device.usable

    @property
    def operations_ratio(self) -> float:
        """Operations of the unpruned prefill over those of the pruned one."""
        return self.unpruned.prefill_operations / self.pruned.prefill_operations

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"fits": self.fits, "operations_ratio": round(self.operations_ratio, 3)}


def predict(
    shape: Shape, device: DeviceSpec, weights: str, *, new: int, layer: int, kept: int, of: tuple[str, str] = ("", "")
) -> Estimate:
    """Estimate a prompt with an answer of `new` tokens, pruned to `kept` visual tokens at `layer` and with all kept.

    `of` names the model and where the pruning settings come from.
    """
    bits, visual = WEIGHTS[weights], shape.cost.visual
    before, after = shape.side(0, visual, new, device, bits), shape.side(layer, kept, new, device, bits)
    prompt, room = Prompt(visual, shape.cost.text, new, layer, kept), device.usable - after.cache_bytes
    sizes = {name: shape.weight_bytes(other) for name, other in WEIGHTS.items()}
    smaller = next((name for name, size in sizes.items() if size <= room), None) if sizes[weights] > room else None
    return Estimate(*of, device, weights, prompt, sizes[weights], before, after, smaller)


def estimate_model(
    model: str,
    device: str,
    pruning: PruningSettings | Mapping[str, Any] | None,
    recipe: Path | str | None,
    weights: str,
    revision: str | None,
    **counts: int,
) -> Estimate:
    """Estimate a checkpoint by its configuration; arguments and errors are those of `iwp_export.api.estimate`.

    `counts` are its `text_tokens`, `images` and `new_tokens`.
    """
    spec = find_device(device)
    if weights not in WEIGHTS:
        raise SettingsError(f"no weights {weights!r}; there are: {', '.join(WEIGHTS)}", options=("weights",))
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise SettingsError(f"{name} must be a whole number of 1 or more, got {value!r}", options=(name,))
    check_request(pruning, recipe)  # before anything is fetched
    checkpoint = open_checkpoint(model, revision=revision, weights=False)
    if checkpoint.is_local and not any(checkpoint.folder.glob("*.safetensors")):
        checkpoint = replace(checkpoint, is_local=False)  # as if its weights were elsewhere: recipes are found by name
    # keep and layer are all that an estimate takes of a recipe, so another model's is worth a look
    choice = resolve(checkpoint, pruning, recipe, any_model=True)
    settings, config = choice.settings, checkpoint.config
    checkpoint.family.require_layer(config, settings.layer, checkpoint.name)
    visual = checkpoint.family.vision_info(config).tokens.typical * counts["images"]
    text_tokens, new_tokens = counts["text_tokens"], counts["new_tokens"]
    most = config.text_config.max_position_embeddings
    if visual + text_tokens + new_tokens > most:
        raise SettingsError(
            f"{visual} visual, {text_tokens} text and {new_tokens} new tokens are more than the {most} of "
            f"{checkpoint.name}; ask for less",
            options=("images", "text_tokens", "new_tokens"),
        )
    cost = PrefillCost.of(config.text_config, visual, text_tokens)
    shape = Shape(cost, bool(getattr(config, "tie_word_embeddings", False)), tower_weights(config))
    pruned = {"layer": settings.layer, "kept": settings.num_keep(visual)}
    return predict(shape, spec, weights, new=new_tokens, **pruned, of=(checkpoint.name, str(choice.source)))


def view(estimate: Estimate) -> View:
    """The whole estimate."""
    device, prompt, before, after = estimate.device, estimate.prompt, estimate.unpruned, estimate.pruned
    facts = (
        ("model", f"{estimate.model}, weights {estimate.weights} ({gigabytes(estimate.weights_bytes)})"),
        ("device", f"{device.title}, {device.mode}"),
        ("request", f"{prompt.visual} visual and {prompt.text} text tokens, {prompt.new} new tokens"),
        ("pruning", f"at the input of layer {prompt.layer}: {prompt.kept} of {prompt.visual} stay"),
        ("settings", estimate.settings),
    )
    rows = (
        (
            "prefill, 10^9 multiply-adds",
            *(_short(side.prefill_operations / GB) for side in (before, after)),
            f"{estimate.operations_ratio:.2f}",
        ),
        ("decode", _speed(before), _speed(after), f"{before.step_bytes / after.step_bytes:.2f}"),
        ("cache", gigabytes(before.cache_bytes), gigabytes(after.cache_bytes), None),
        ("memory", gigabytes(before.memory_bytes), gigabytes(after.memory_bytes), None),
    )
    columns = [Column(title, number=True) for title in ("", "all tokens", "pruned", "ratio")]
    return View("Estimate", sentences(estimate), facts, tables=(Table(columns, rows),), notes=assumptions(estimate))


def sentences(estimate: Estimate) -> list[str]:
    """Whether it fits, and what pruning brings."""
    device, before, after = estimate.device, estimate.unpruned, estimate.pruned
    room = f"{gigabytes(device.usable)} usable of {device.memory / GB:.0f} GB"
    if estimate.fits:
        fits = "Fits" if before.memory_bytes <= device.usable else "Fits only when pruned"
        fit = f"{fits}: {gigabytes(after.memory_bytes)} in {room}."
    else:
        need = f"{gigabytes(estimate.weights_bytes)} of weights and {gigabytes(after.cache_bytes)} of caches"
        would = f"; {estimate.smaller} weights would" if estimate.smaller else ""
        fit = f"Does not fit: {need}, in {room}{would}."
    return [
        fit,
        f"Pruned, a prefill takes {percent(1 / estimate.operations_ratio)} of the operations and a decode step "
        f"{percent(after.step_bytes / before.step_bytes)} of the bytes.",
    ]


def assumptions(estimate: Estimate) -> list[str]:
    """What the estimate takes for granted."""
    device, (low, high) = estimate.device, map(percent, BANDWIDTH)
    reserve = gigabytes(device.memory - device.usable)
    lines = [
        f"Decoding reaches {low} to {high} of the {device.bandwidth:g} GB/s of "
        f"{device.mode} (docs/estimate.md); slower power modes are slower.",
        f"{reserve} are not usable: {'system, desktop, CUDA' if device.shared else 'CUDA and a screen'}.",
        "One request alone; activations, images, the start of kernels and the choice of tokens are not counted. "
        "Operations are no time.",
    ]
    if estimate.weights != "fp16":
        lines.append(
            f"{estimate.weights} weights of the decoder's layers; embedding, head and tower are float16. iwp-export "
            "writes no such weights yet."
        )
    return lines


def gigabytes(count: float) -> str:
    """A size in GB or MB of 10^9 and 10^6 bytes, as data sheets and weights are counted."""
    return f"{count / GB:.1f} GB" if count >= GB / 10 else f"{count / 1e6:.1f} MB"


def _speed(side: Side) -> str:
    low, high = map(_short, side.tokens_per_second)
    return f"{low} to {high} tokens/s"


def _short(value: float) -> str:
    """Two figures or more: the estimate holds no more."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
