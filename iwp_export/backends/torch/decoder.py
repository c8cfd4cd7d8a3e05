"""The language model as one graph for prefill and decode, with the pruning step inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from iwp_export.models.common.family import Family
from iwp_export.models.common.llama import attend
from iwp_export.pruning.importance import token_importance
from iwp_export.pruning.onnx_function import DOMAIN, OP_TYPE, VERSION, node_attributes
from iwp_export.pruning.settings import PruningSettings
from iwp_export.pruning.torch_select import Select, kept_index


class PrunedDecoder(nn.Module):
    """A Llama-like decoder that drops visual tokens at the input of layer `settings.layer`.

    The same module is traced for export (with the op as a symbol) and run as the torch reference (with the torch
    selection). The queries, keys and values that score the tokens are the ones that the layer then uses.

    Args:
        model: the transformers model.
        family: its family, which says where its decoder differs from Llama's.
        settings: where and how to prune.
        select: the pruning op; `select_in_torch` or `select_as_symbol`.
    """

    def __init__(self, model: Any, family: Family, settings: PruningSettings, select: Select) -> None:
        super().__init__()
        self.family = family
        self.language_model = family.language_model(model)
        self.head = family.head(model)
        self.settings = settings
        self.select = select

    def forward(
        self,
        input_ids: Tensor,
        image_features: Tensor,
        feature_index: Tensor,
        query_index: Tensor,
        position_ids: Tensor,
        num_kept: Tensor,
        past_key_values: list[Tensor],
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """One call: a whole prompt or one generated token.

        Args:
            input_ids: int64 [1, S].
            image_features: [N, D], features of the call's visual tokens, or one row that nothing refers to.
            feature_index: int64 [1, S], row of `image_features` at a visual token, -1 at text.
            query_index: int64 [Q], the call's tokens whose queries score the visual ones; Q is 1 at least.
            position_ids: int64 [1, S] or, with M-RoPE, [3, 1, S]: positions in the unpruned sequence.
            num_kept: int64 [1], tokens that go on past the pruning layer, text and visual.
            past_key_values: key and value [1, Hkv, P_i, d] of layer 0, 1, ...; P_i is shorter from the pruning layer.

        Returns:
            logits float32 [1, 1, V] of the last token; key and value of each layer with this call's tokens
            appended; kept_index int64 [1, K].
        """
        lm, family = self.language_model, self.family
        hidden = family.embed(lm, input_ids, image_features, feature_index)
        rotary = family.rotary(lm, hidden, position_ids)
        present: list[Tensor] = []
        kept = feature_index
        mask = family.mask(hidden.shape[1], past_key_values[0].shape[2], hidden)
        for index, layer in enumerate(lm.layers):
            normed = layer.input_layernorm(hidden)
            query, key, value = family.project(layer.self_attn, normed)
            rotated = torch.onnx.ops.rotary_embedding(query, *rotary), torch.onnx.ops.rotary_embedding(key, *rotary)
            if index == self.settings.layer:
                kept = self._select((query, key, value), rotated, query_index, feature_index, num_kept)
                row = kept[0]
                hidden, feature_index = hidden.index_select(1, row), feature_index.index_select(1, row)
                rotary = rotary[0].index_select(1, row), rotary[1].index_select(1, row)
                value = value.index_select(2, row)
                rotated = rotated[0].index_select(2, row), rotated[1].index_select(2, row)
                mask = family.mask(hidden.shape[1], past_key_values[2 * index].shape[2], hidden)
            key_cache = torch.cat([past_key_values[2 * index], rotated[1]], 2)
            value_cache = torch.cat([past_key_values[2 * index + 1], value], 2)
            present += [key_cache, value_cache]
            hidden = hidden + attend(layer.self_attn, rotated[0], key_cache, value_cache, mask)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            hidden = family.after_layer(index, hidden, image_features, feature_index)
        return family.logits(self.head, lm.norm(hidden[:, -1:])).float(), present, kept

    def _select(
        self,
        projected: tuple[Tensor, Tensor, Tensor],
        rotated: tuple[Tensor, Tensor],
        query_index: Tensor,
        feature_index: Tensor,
        num_kept: Tensor,
    ) -> Tensor:
        query, key, value = projected
        scored_query, scored_key = rotated if self.settings.scored_rotated else (query, key)
        importance = token_importance(
            torch,
            scored_query.index_select(2, query_index).float(),
            scored_key.float(),
            value.float(),
            feature_index,
            **self.settings.scoring(),
        )
        compared_key = rotated[1] if self.settings.rope_in_duplication else key
        return self.select(importance, compared_key, value, feature_index >= 0, num_kept)


def select_in_torch(settings: PruningSettings) -> Select:
    """The op computed by torch: the reference that exported graphs are compared with."""

    def select(importance: Tensor, key: Tensor, value: Tensor, visual: Tensor, num_kept: Tensor) -> Tensor:
        return kept_index(importance, key, value, visual, int(num_kept[0]), settings)

    return select


def select_as_symbol(settings: PruningSettings) -> Select:
    """The op as a node of the exported graph, its output's length the request-time number `num_kept[0]`."""

    def select(importance: Tensor, key: Tensor, value: Tensor, visual: Tensor, num_kept: Tensor) -> Tensor:
        length = num_kept[0].item()
        torch._check(length >= 1)
        torch._check(length <= visual.shape[1])
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{OP_TYPE}",
            (importance, key, value, visual, num_kept),
            attrs=node_attributes(settings),
            dtype=torch.int64,
            shape=(1, length),
            version=VERSION,
        )

    return select
