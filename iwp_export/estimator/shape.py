"""The shape of a vision-language model: what its parts multiply and how many weights they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from iwp_export.errors import CheckpointError
from iwp_export.pruning.cost import PrefillCost


@dataclass(frozen=True)
class LanguageShape:
    """A decoder with gated MLPs.

    Attributes:
        layers, hidden, inner: `inner` is the width of the MLP.
        query, key_value: width of all query heads, and of all key/value heads.
        vocabulary: rows of embedding and head; `tied` if they are one tensor.
    """

    layers: int
    hidden: int
    inner: int
    query: int
    key_value: int
    vocabulary: int
    tied: bool = False

    @classmethod
    def of(cls, config: Any) -> LanguageShape:
        """Of a transformers configuration with a `text_config`."""
        cost = PrefillCost.of(config.text_config, 0, 0)
        tied = bool(getattr(config, "tie_word_embeddings", False))
        return cls(cost.layers, cost.hidden, cost.inner, cost.query, cost.key_value, cost.vocabulary, tied)

    @property
    def body(self) -> int:
        """Weights of the layers, without biases and norms."""
        attention = self.hidden * (self.query + 2 * self.key_value) + self.query * self.hidden
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def head(self) -> int:
        """Weights of the head."""
        return self.hidden * self.vocabulary

    @property
    def embedding(self) -> int:
        """Weights of the embedding that the head does not share."""
        return 0 if self.tied else self.head

    def prefill(self, visual: int, text: int) -> PrefillCost:
        """What a prompt of so many tokens costs."""
        return PrefillCost(
            self.layers, self.hidden, self.inner, self.query, self.key_value, self.vocabulary, visual, text
        )


@dataclass(frozen=True)
class TowerShape:
    """A vision tower of square tiles, and the projector of two matrices behind it.

    Attributes:
        layers, hidden, inner: of the layers that are run, up to the one whose output is read.
        tokens: of a tile in the tower; `visual`: those of them that are projected.
        patch: values of a patch of pixels.
        joined: width of what is projected; `out`: of the projector's output.
    """

    layers: int
    hidden: int
    inner: int
    tokens: int
    visual: int
    patch: int
    joined: int
    out: int

    @classmethod
    def of(cls, config: Any) -> TowerShape:
        """Of a transformers configuration with a `vision_config`.

        Raises:
            CheckpointError: its tower is not one of square tiles.
        """
        tower = config.vision_config
        try:
            side = tower.image_size // tower.patch_size
            chosen = config.vision_feature_layer
            chosen = [chosen] if isinstance(chosen, int) else list(chosen)
            layers = max(index if index >= 0 else tower.num_hidden_layers + 1 + index for index in chosen)
            return cls(
                layers=layers,
                hidden=tower.hidden_size,
                inner=tower.intermediate_size,
                tokens=side * side + (tower.model_type == "clip_vision_model"),
                visual=side * side,
                patch=3 * tower.patch_size**2,
                joined=tower.hidden_size * len(chosen),
                out=config.text_config.hidden_size,
            )
        except (AttributeError, TypeError) as error:
            raise CheckpointError(f"the vision tower of {config.model_type} has no estimate yet ({error})") from error

    @property
    def weights(self) -> int:
        """Weights of tower and projector, without biases, norms and class token; with positions."""
        layer = 4 * self.hidden**2 + 2 * self.hidden * self.inner
        ends = self.patch * self.hidden + self.tokens * self.hidden + self.joined * self.out + self.out**2
        return self.layers * layer + ends

    @property
    def operations(self) -> int:
        """Multiply-adds of one tile."""
        layer = self.tokens * (4 * self.hidden**2 + 2 * self.hidden * self.inner) + 2 * self.tokens**2 * self.hidden
        projector = self.visual * (self.joined * self.out + self.out**2)
        return self.layers * layer + self.visual * self.patch * self.hidden + projector


@dataclass(frozen=True)
class ModelShape:
    """A vision-language model; without a tower, a language model alone."""

    language: LanguageShape
    tower: TowerShape | None = None
