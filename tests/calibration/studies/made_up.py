"""What methods see in the tests: small tensors with the fields that a test gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from calibration.studies.seen import LayerSeen, Seen, TowerSeen

NOTHING = torch.zeros(1, 1, 0, 1)


def layer(**given: Tensor) -> LayerSeen:
    """A layer of which only the given fields are looked at."""
    fields = dict.fromkeys(LayerSeen.__dataclass_fields__, NOTHING)
    return LayerSeen(**{**fields, **given})


def seen(features: Tensor, visual: Tensor | None = None, **given: Any) -> Seen:
    """A call whose tokens are all visual unless `visual` says otherwise."""
    given = {"words": torch.zeros(1, features.shape[-1]), "towers": tuple, **given}
    return Seen(features, torch.ones(len(features), dtype=torch.bool) if visual is None else visual, **given)


def tower(hidden: Tensor, query: Tensor, key: Tensor) -> TowerSeen:
    """A tower whose projector multiplies by 10."""
    return TowerSeen(hidden, query, key, lambda states: 10 * states)


def directions(*degrees: float) -> Tensor:
    """Unit vectors [n, 2]."""
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], dim=1)
