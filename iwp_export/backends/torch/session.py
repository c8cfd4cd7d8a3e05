"""The torch reference behind the interface of backends: the same prompts, loop and caches, torch for the graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from iwp_export.backends.session import Cache, Features, StepInputs, StepOutput
from iwp_export.backends.torch.decoder import PrunedDecoder, select_in_torch
from iwp_export.models.common.family import Family
from iwp_export.models.common.picture import Array
from iwp_export.pruning.settings import PruningSettings
from iwp_export.pruning.torch_select import Select


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


SelectFor = Callable[[Tensor], Select]
"""From the image features [N, D] of a call to the pruning op that it uses: rivals choose by features."""


class TorchSession:
    """A checkpoint's transformers modules run by torch, pruned by the torch selection or by a rival's.

    Args:
        model: the transformers model.
        family: its family.
        settings: where and how to prune.
        select_for: the pruning op of each call; IWP's with `settings` if left out.
    """

    provider = "torch"
    call_limits = None

    def __init__(
        self, model: Any, family: Family, settings: PruningSettings, select_for: SelectFor | None = None
    ) -> None:
        self.model, self.family = model, family
        self._select_for = select_for or (lambda features: select_in_torch(settings))
        self.decoder = PrunedDecoder(model, family, settings, _unset).eval()
        self._encoder = family.vision_graph(model).module.eval()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def choosing(self, settings: PruningSettings, select_for: SelectFor | None = None) -> TorchSession:
        """This session with another way to choose tokens; the model is shared."""
        return TorchSession(self.model, self.family, settings, select_for)

    def encode(self, inputs: Mapping[str, Array]) -> Features:
        tensors = {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}
        with torch.no_grad():
            return TorchFeatures(self._encoder(**tensors))

    def new_cache(self) -> Cache:
        return TorchCache()

    def step(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> StepOutput:
        assert isinstance(cache, TorchCache)
        values = [image.values for image in features if isinstance(image, TorchFeatures)]
        size, dtype = self.decoder.language_model.config.hidden_size, self.model.dtype
        joined = torch.cat(values) if values else torch.zeros(1, size, dtype=dtype, device=self.device)
        self.decoder.select = self._select_for(joined)
        arrays = (inputs.input_ids, inputs.feature_index, inputs.query_index, inputs.position_ids)
        ids, *indices = (torch.from_numpy(array).to(self.device) for array in arrays)
        count = torch.tensor([inputs.num_kept])
        with torch.no_grad():
            logits, present, kept = self.decoder(ids, joined, *indices, count, cache.values or self._empty_cache())
        cache.values = present
        return StepOutput(logits[0, 0].cpu().numpy(), kept[0].cpu().numpy())

    def _empty_cache(self) -> list[Tensor]:
        layers = self.decoder.language_model.layers
        attention = layers[0].self_attn
        heads = attention.k_proj.out_features // attention.head_dim
        empty = torch.zeros(1, heads, 0, attention.head_dim, dtype=self.model.dtype, device=self.device)
        return [empty] * (2 * len(layers))


def _unset(*inputs: Tensor) -> Tensor:
    raise AssertionError("the selection is set for each call")
