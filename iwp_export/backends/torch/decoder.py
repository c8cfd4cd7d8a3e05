"""A decoder that drops visual tokens at one layer, and what flows between its layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from iwp_export.models.common.family import Family
from iwp_export.pruning.importance import token_importance
from iwp_export.pruning.onnx_function import DOMAIN, OP_TYPE, VERSION, node_attributes
from iwp_export.pruning.settings import PruningSettings
from iwp_export.pruning.torch_select import Select, kept_index


@dataclass(frozen=True)
class Stream:
    """What flows from layer to layer: the tokens that are left.

    Attributes:
        hidden: [1, S, D].
        rotary: cos and sin [1, S, d / 2].
        feature_index: int64 [1, S], row of the image features at a visual token, -1 at text.
    """

    hidden: Tensor
    rotary: tuple[Tensor, Tensor]
    feature_index: Tensor

    def only(self, row: Tensor) -> Stream:
        """The tokens `row` [K] alone."""
        cos, sin = self.rotary
        return Stream(
            self.hidden.index_select(1, row),
            (cos.index_select(1, row), sin.index_select(1, row)),
            self.feature_index.index_select(1, row),
        )


@dataclass(frozen=True)
class Projected:
    """A layer's queries [1, H, S, d], keys and values [1, Hkv, S, d], before RoPE; and rotated queries and keys."""

    query: Tensor
    key: Tensor
    value: Tensor
    rotated_query: Tensor
    rotated_key: Tensor

    def only(self, row: Tensor) -> Projected:
        """What a layer uses of the tokens `row` [K]: no query or key before RoPE."""
        value, query, key = (x.index_select(2, row) for x in (self.value, self.rotated_query, self.rotated_key))
        return replace(self, value=value, rotated_query=query, rotated_key=key)


Watch = Callable[[int, Stream, Projected], None]
"""(index of a decoder layer, the tokens that it sees, its projections of them), called before its attention."""


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
        self.watch: Watch | None = None
        """Told what each layer computed; for the torch reference alone."""

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
            input_ids, feature_index, query_index, position_ids: as in `StepInputs`.
            image_features: [N, D], features of the call's visual tokens, or one row that nothing refers to.
            num_kept: int64 [1], tokens that go on past the pruning layer, text and visual.
            past_key_values: key and value [1, Hkv, P_i, d] of layer 0, 1, ...; P_i is shorter from the pruning layer.

        Returns:
            logits float32 [1, 1, V] of the last token; key and value of each layer with this call's tokens
            appended; kept_index int64 [1, K].
        """
        family = self.family
        stream = self.start(input_ids, image_features, feature_index, position_ids)
        present: list[Tensor] = []
        kept = feature_index
        mask = family.mask(stream.hidden.shape[1], past_key_values[0].shape[2], stream.hidden)
        for index in range(len(self.language_model.layers)):
            projected = self.project(index, stream)
            if self.watch is not None:
                self.watch(index, stream, projected)
            if index == self.settings.layer:
                importance, compared = self.score(projected, query_index, feature_index, self.settings)
                kept = self.select(importance, compared, projected.value, feature_index >= 0, num_kept)
                stream, projected = stream.only(kept[0]), projected.only(kept[0])
                mask = family.mask(stream.hidden.shape[1], past_key_values[2 * index].shape[2], stream.hidden)
            key = torch.cat([past_key_values[2 * index], projected.rotated_key], 2)
            value = torch.cat([past_key_values[2 * index + 1], projected.value], 2)
            present += [key, value]
            stream = self.attend(index, stream, projected.rotated_query, key, value, mask, image_features)
        return self.logits(stream.hidden[:, -1:]), present, kept

    def start(self, input_ids: Tensor, image_features: Tensor, feature_index: Tensor, position_ids: Tensor) -> Stream:
        """The input of layer 0; arguments are `forward`'s."""
        hidden = self.family.embed(self.language_model, input_ids, image_features, feature_index)
        return Stream(hidden, self.family.rotary(self.language_model, hidden, position_ids), feature_index)

    def project(self, index: int, stream: Stream) -> Projected:
        """Layer `index`'s projections of its normalised input."""
        layer = self.language_model.layers[index]
        query, key, value = self.family.project(layer.self_attn, layer.input_layernorm(stream.hidden))
        rotated = (torch.onnx.ops.rotary_embedding(x, *stream.rotary) for x in (query, key))
        return Projected(query, key, value, *rotated)

    def score(
        self, projected: Projected, query_index: Tensor, feature_index: Tensor, settings: PruningSettings
    ) -> tuple[Tensor, Tensor]:
        """What the pruning op gets beside values: importance float32 [1, S], and the keys that similarity compares."""
        query, key = projected.query, projected.key
        if settings.scored_rotated:
            query, key = projected.rotated_query, projected.rotated_key
        importance = token_importance(
            torch,
            query.index_select(2, query_index).float(),
            key.float(),
            projected.value.float(),
            feature_index,
            **settings.scoring(),
        )
        return importance, projected.rotated_key if settings.rope_in_duplication else projected.key

    def attend(
        self,
        index: int,
        stream: Stream,
        rotated_query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        image_features: Tensor,
    ) -> Stream:
        """The rest of layer `index`, with its whole key and value [1, Hkv, P + S, d]: the input of the next one."""
        layer = self.language_model.layers[index]
        attention, grouped = layer.self_attn, rotated_query.shape[1] != key.shape[1]
        out = torch.nn.functional.scaled_dot_product_attention(
            rotated_query, key, value, attn_mask=mask, scale=attention.scaling, enable_gqa=grouped
        )
        hidden = stream.hidden + attention.o_proj(out.transpose(1, 2).reshape(1, rotated_query.shape[2], -1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return replace(stream, hidden=self.family.after_layer(index, hidden, image_features, stream.feature_index))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits float32 [1, S, V] of the last layer's output [1, S, D]."""
        return self.family.logits(self.head, self.language_model.norm(hidden)).float()


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
