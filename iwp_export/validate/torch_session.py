"""The torch reference behind the runtime's own interface: the same prompts, loop and caches, torch for the graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iwp_export.export.checkpoint import Checkpoint
from iwp_export.export.decoder import PrunedDecoder
from iwp_export.pruning.rivals import Method
from iwp_export.pruning.settings import PruningSettings
from iwp_export.runtime.session import Cache, Features, Floats, StepInputs, StepOutput


@dataclass(frozen=True)
class TorchFeatures:
    """Features of one image, [n, D]."""

    values: Tensor

    @property
    def count(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


@dataclass
class TorchCache:
    """Key and value [1, Hkv, P_i, d] of layer 0, 1, ..."""

    values: list[Tensor] = field(default_factory=list)

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(key.shape[2] for key in self.values[::2])

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.values)


class TorchSession:
    """A checkpoint's transformers modules run by torch, pruned by the torch selection or by a rival's.

    Args:
        checkpoint: where the model comes from.
        settings: where and how to prune.
        dtype: element type of weights and activations.
        model: the transformers model, if it is loaded already.
    """

    provider = "torch"

    def __init__(
        self, checkpoint: Checkpoint, settings: PruningSettings, dtype: torch.dtype = torch.float32, model: Any = None
    ) -> None:
        self.family = checkpoint.family
        self.model = model if model is not None else load_model(checkpoint, dtype)
        self.method = Method(settings)
        self.decoder = PrunedDecoder(
            self.family.language_model(self.model), self.model.lm_head, settings, _unset
        ).eval()

    def with_method(self, method: Method) -> TorchSession:
        """This session with another way to choose tokens; the model is shared."""
        other = object.__new__(TorchSession)
        other.__dict__.update(self.__dict__)
        other.method = method
        other.decoder = PrunedDecoder(self.decoder.language_model, self.decoder.head, method.settings, _unset).eval()
        return other

    def encode(self, pixel_values: Floats) -> Features:
        with torch.no_grad():
            pixels = torch.from_numpy(np.asarray(pixel_values)).to(self.model.dtype)
            return TorchFeatures(self.family.image_features(self.model, pixels).flatten(0, 1))

    def new_cache(self) -> Cache:
        return TorchCache()

    def step(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> StepOutput:
        assert isinstance(cache, TorchCache)
        values = [image.values for image in features if isinstance(image, TorchFeatures)]
        size, dtype = self.decoder.language_model.config.hidden_size, self.model.dtype
        joined = torch.cat(values) if values else torch.zeros(1, size, dtype=dtype)
        self.decoder.select = self.method.select(joined)
        arrays = (inputs.feature_index, inputs.query_weights, inputs.position_ids)
        with torch.no_grad():
            logits, present, kept = self.decoder(
                torch.from_numpy(inputs.input_ids),
                joined,
                *(torch.from_numpy(array) for array in arrays),
                torch.tensor([inputs.num_kept]),
                cache.values or self._empty_cache(),
            )
        cache.values = present
        return StepOutput(logits[0, 0].numpy(), kept[0].numpy())

    def _empty_cache(self) -> list[Tensor]:
        layers = self.decoder.language_model.layers
        attention = layers[0].self_attn
        heads = attention.k_proj.out_features // attention.head_dim
        return [torch.zeros(1, heads, 0, attention.head_dim, dtype=self.model.dtype) for _ in range(2 * len(layers))]


def load_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The checkpoint's stock transformers model, ready for inference."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(
        checkpoint.folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True
    ).eval()


def _unset(*inputs: Tensor) -> Tensor:
    raise AssertionError("the selection is set for each call")
