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
    """What is asked: tokens of the images, of text and of the answer, and what pruning leaves.

    Attributes:
        visual, text, new: tokens; `visual` of all images.
        layer, kept: visual tokens that go on from that layer; `kept` equals `visual` without pruning.
    """

    visual: int
    text: int
    new: int
    layer: int
    kept: int


@dataclass(frozen=True)
class Shape:
    """A vision-language model, by its configuration.

    Attributes:
        language: widths and layers of the language model; its tokens are not used.
        tied: whether embedding and head are one tensor.
        tower: weights of vision tower and projector.
    """

    language: PrefillCost
    tied: bool
    tower: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Of a transformers configuration with a `text_config` and a `vision_config`.

        Raises:
            CheckpointError: its tower is not one of square tiles.
        """
        tied = bool(getattr(config, "tie_word_embeddings", False))
        return cls(PrefillCost.of(config.text_config, 0, 0), tied, _tower_weights(config))

    @property
    def body(self) -> int:
        """Weights of the decoder's layers with their gated MLPs, without biases and norms."""
        one = self.language
        return one.layers * (one.hidden * (2 * one.query + 2 * one.key_value) + 3 * one.hidden * one.inner)

    @property
    def head(self) -> int:
        """Weights of the head."""
        return self.language.hidden * self.language.vocabulary

    def weight_bytes(self, bits: float) -> int:
        """Bytes of all weights in memory, with so many bits for one of the layers."""
        return round((self.body * bits + (self.head * (1 if self.tied else 2) + self.tower) * HEAD_BITS) / 8)

    def cache_bytes(self, prompt: Prompt, new: float) -> int:
        """Bytes of the key/value caches once `new` tokens of the answer are there."""
        full, left = (count + prompt.text + new for count in (prompt.visual, prompt.kept))
        tokens = prompt.layer * full + (self.language.layers - prompt.layer) * left
        return round(tokens * 2 * self.language.key_value * VALUE_BYTES)

    def step_bytes(self, prompt: Prompt, bits: float, head_bits: float = HEAD_BITS) -> int:
        """Bytes that the middle one of an answer's steps reads: the decoder's weights once, and the caches."""
        return round((self.body * bits + self.head * head_bits) / 8) + self.cache_bytes(prompt, prompt.new / 2)

    def side(self, prompt: Prompt, device: DeviceSpec, bits: float) -> Side:
        """What a prompt needs on a device, with so many bits for a weight of the layers."""
        cost = replace(self.language, visual=prompt.visual, text=prompt.text).operations(prompt.layer, prompt.kept)
        step, cache = self.step_bytes(prompt, bits), self.cache_bytes(prompt, prompt.new)
        low, high = (share * device.bandwidth * GB / step for share in BANDWIDTH)
        return Side(prompt.kept, cost, step, (low, high), cache, self.weight_bytes(bits) + cache)


def _tower_weights(config: Any) -> int:
    """Weights of a tower of square tiles, up to the layer that is read, and of the projector's two matrices."""
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
        visual_tokens: after the pruning layer.
        prefill_operations: multiply-adds of the language model's prefill.
        step_bytes: that a step of decoding reads.
        tokens_per_second: of decoding, the lowest and the highest.
        cache_bytes: of the caches at the end of the answer.
        memory_bytes: with the weights.
    """

    visual_tokens: int
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
    shape: Shape, prompt: Prompt, device: DeviceSpec, weights: str, model: str = "model", settings: str = "given"
) -> Estimate:
    """Estimate a prompt on a device, pruned as it says and with all tokens kept; see `Estimate`."""
    bits, whole = WEIGHTS[weights], replace(prompt, layer=0, kept=prompt.visual)
    before, after = (shape.side(asked, device, bits) for asked in (whole, prompt))
    room = device.usable - after.cache_bytes
    sizes = {name: shape.weight_bytes(other) for name, other in WEIGHTS.items()}
    smaller = next((name for name, size in sizes.items() if size <= room), None) if sizes[weights] > room else None
    return Estimate(model, settings, device, weights, prompt, sizes[weights], before, after, smaller)


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
    prompt = Prompt(visual, text_tokens, new_tokens, settings.layer, settings.num_keep(visual))
    return predict(Shape.of(config), prompt, spec, weights, model=checkpoint.name, settings=str(choice.source))
