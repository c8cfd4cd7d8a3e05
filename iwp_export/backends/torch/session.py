"""A checkpoint's transformers modules behind the interface of every backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from iwp_export.backends.session import STEP_TENSORS, Cache, Features, Floats, Inside, StepInputs, StepOutput
from iwp_export.backends.torch.decoder import Projected, PrunedDecoder, Stream, select_in_torch
from iwp_export.models.common.family import Array, Family
from iwp_export.pruning.settings import PruningSettings
from iwp_export.pruning.torch_select import Select


@dataclass(frozen=True)
class TorchFeatures:
    """Features of one image, [n, D]."""

    values: Tensor

    @property
    def count(self) -> int:
        return len(self.values)


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
    """A checkpoint's transformers modules run by torch, pruned by the torch form of the op.

    Args:
        model: the transformers model.
        family: its family.
        settings: where and how to prune.
        select: another pruning op than the settings' own.
    """

    provider = "torch"
    call_limits = None
    no_look = ""

    def __init__(self, model: Any, family: Family, settings: PruningSettings, select: Select | None = None) -> None:
        self.model, self.family = model, family
        self.decoder = PrunedDecoder(model, family, settings, select or select_in_torch(settings)).eval()
        self._encoder = family.vision_graph(model).module.eval()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def choosing(self, settings: PruningSettings, select: Select | None = None) -> TorchSession:
        """This session with another way to choose tokens; the model is shared."""
        return TorchSession(self.model, self.family, settings, select)

    def encode(self, inputs: Mapping[str, Array]) -> Features:
        tensors = {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}
        with torch.no_grad():
            values = self._encoder(**tensors)
        if values.is_cuda:
            torch.cuda.synchronize()
        return TorchFeatures(values)

    def new_cache(self) -> Cache:
        return TorchCache()

    def step(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> StepOutput:
        assert isinstance(cache, TorchCache)
        images = [image.values for image in features if isinstance(image, TorchFeatures)]
        width = self.decoder.language_model.config.hidden_size
        joined = torch.cat(images) if images else torch.zeros(1, width, dtype=self.model.dtype, device=self.device)
        ids, *index = (torch.from_numpy(getattr(inputs, name)).to(self.device) for name in STEP_TENSORS)
        with torch.no_grad():
            logits, present, kept = self.decoder(
                ids, joined, *index, torch.tensor([inputs.num_kept]), cache.values or self._empty_cache()
            )
        cache.values = present
        return StepOutput(logits[0, 0].cpu().numpy(), kept[0].cpu().numpy())

    def read_features(self, features: Features) -> Floats:
        assert isinstance(features, TorchFeatures)
        return _on_host(features.values)

    def read_cache(self, cache: Cache, layer: int) -> tuple[Floats, Floats]:
        assert isinstance(cache, TorchCache)
        key, value = (_on_host(held[0]) for held in cache.values[2 * layer : 2 * layer + 2])
        return key, value

    def look(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> tuple[StepOutput, Inside]:
        hidden: list[Floats] = []
        choice: list[Floats] = []
        own = self.decoder.select

        def watch(index: int, stream: Stream, projected: Projected) -> None:
            hidden.append(_on_host(stream.hidden[0]))

        def select(*given: Tensor) -> Tensor:
            choice.extend(_on_host(each[0]) for each in given[:3])
            return own(*given)

        self.decoder.watch, self.decoder.select = watch, select
        try:
            output = self.step(inputs, features, cache)
        finally:
            self.decoder.watch, self.decoder.select = None, own
        return output, Inside(tuple(hidden), *choice)

    def _empty_cache(self) -> list[Tensor]:
        layers = self.decoder.language_model.layers
        attention = layers[0].self_attn
        heads = attention.k_proj.out_features // attention.head_dim
        empty = torch.zeros(1, heads, 0, attention.head_dim, dtype=self.model.dtype, device=self.device)
        return [empty] * (2 * len(layers))


def _on_host(tensor: Tensor) -> Floats:
    found: Floats = tensor.detach().float().cpu().numpy()
    return found
