"""A call of the torch decoder: from the host's inputs, whole or with its image condensed before layer 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iwp_export.backends.session import StepInputs
from iwp_export.backends.torch.seen import Condensed
from iwp_export.errors import SettingsError


@dataclass(frozen=True)
class DecoderCall:
    """The inputs of `PrunedDecoder.forward` but for the cache; see there."""

    input_ids: Tensor
    image_features: Tensor
    feature_index: Tensor
    query_index: Tensor
    position_ids: Tensor
    num_kept: int

    @property
    def tokens(self) -> int:
        return self.input_ids.shape[1]

    @property
    def visual(self) -> Tensor:
        """bool [S], true at visual tokens."""
        return self.feature_index[0] >= 0

    def inputs(self) -> tuple[Tensor, ...]:
        """In the order of `PrunedDecoder.forward`."""
        kept = torch.tensor([self.num_kept])
        index = self.feature_index, self.query_index, self.position_ids
        return self.input_ids, self.image_features, *index, kept


def whole_call(inputs: StepInputs, features: Sequence[Tensor], like: Tensor, shift: int) -> DecoderCall:
    """The host's call as it is.

    Args:
        inputs: the call.
        features: [n, D] of each of its images.
        like: [1, D], the features of a call without images.
        shift: how many tokens fewer the language model has read than the host counts.
    """
    arrays = (inputs.input_ids, inputs.feature_index, inputs.query_index, inputs.position_ids)
    ids, feature_index, query_index, position_ids = (torch.from_numpy(array).to(like.device) for array in arrays)
    joined = torch.cat(list(features)) if features else like
    return DecoderCall(ids, joined, feature_index, query_index, position_ids - shift, inputs.num_kept)


def condensed_call(call: DecoderCall, condensed: Condensed) -> tuple[DecoderCall, Tensor]:
    """A call whose image is replaced by other features, and that drops nothing afterwards.

    The new tokens stand where the image's first one stood; positions go on from the call's first without gaps, as in
    a prompt with a smaller image.

    Returns:
        The call, and the host's indices of its tokens that are left, int64 [K], ascending.

    Raises:
        SettingsError: positions of more than one dimension, which a set of tokens does not have.
    """
    if call.position_ids.ndim != 2:
        raise SettingsError("methods that work before layer 0 renumber positions, which this model has in 3 dimensions")
    visual = call.visual
    tokens, count = torch.nonzero(visual)[:, 0], len(condensed.features)
    first = int(tokens[0])
    text = torch.nonzero(~visual)[:, 0]
    source = torch.cat([text[text < first], tokens[:1].expand(count), text[text > first]])
    feature_index = torch.full_like(source, -1)
    feature_index[first : first + count] = torch.arange(count, device=source.device)
    shorter = DecoderCall(
        input_ids=call.input_ids[:, source],
        image_features=condensed.features.to(call.image_features.dtype),
        feature_index=feature_index[None],
        query_index=torch.tensor([len(source) - 1], device=source.device),
        position_ids=call.position_ids[:, : len(source)],
        num_kept=len(source),
    )
    return shorter, torch.cat([text, tokens[condensed.rows]]).sort().values
