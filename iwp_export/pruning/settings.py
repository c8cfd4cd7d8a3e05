"""The settings of IWP pruning: what is kept, where, and how tokens are scored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from iwp_export.errors import SettingsError

Query = Literal["text_after_image", "text", "image", "last"]
Heads = Literal["softmax", "raw"]
Magnitude = Literal["kernel_value", "kernel", "value", "key", "update"]
Similarity = Literal["dual_weight", "value", "key", "kernel"]
DuplicationNorm = Literal["none", "minmax"]

KEEP_ROUNDING = 1e-9
"""Slack of the budget's ceiling: 0.3 * 10 is 3.0000000000000004 in binary and must keep 3 tokens, not 4."""


@dataclass(frozen=True)
class PruningSettings:
    """Settings of IWP (arXiv:2604.00757), with the paper's defaults where it gives one.

    Attributes:
        layer: decoder layer (from 0) at whose input visual tokens are dropped; layers below see every token.
        keep: fraction of the visual tokens that is kept, in (0, 1]; the default of a request.
        chunk: tokens chosen in the first round (b0 of Algorithm 1).
        growth: factor from one round's size to the next (g of Algorithm 1).
        penalty: weight of duplication (lambda of Algorithm 1); 0 ranks by magnitude alone.
        query: which tokens are averaged into the query that magnitude is measured with (Sec. 4.1).
        heads: how heads weigh in the mean of magnitudes: `softmax` divides each head's kernel by its sum over the
            visual tokens, `raw` is Eq. 10 with one maximum subtracted.
        magnitude: importance of a token: `kernel_value` is kappa(q, k) * ||v|| (Eq. 10); the others are the
            paper's ablations: `kernel` kappa alone, `value` ||v||, `key` ||k||, `update` ||phi(k)^T v||_F.
        similarity: redundancy of two tokens, squared: `dual_weight` cos(v, v') * kernel(k, k') (Eq. 12); ablations:
            `value` cosine of values, `key` cosine of keys, `kernel` the Gaussian kernel of keys.
        duplication_norm: `none`, or `minmax` over each round's matrix of (remaining x new) tokens.
        rope_in_magnitude: score magnitude with rotated queries and keys (App. C.3).
        rope_in_duplication: score duplication with rotated keys (App. C.3).

    Raises:
        SettingsError: a value is out of range.
    """

    layer: int = 4
    keep: float = 0.3
    chunk: int = 2
    growth: int = 2
    penalty: float = 5.0
    query: Query = "text_after_image"
    heads: Heads = "softmax"
    magnitude: Magnitude = "kernel_value"
    similarity: Similarity = "dual_weight"
    duplication_norm: DuplicationNorm = "none"
    rope_in_magnitude: bool = False
    rope_in_duplication: bool = True

    def __post_init__(self) -> None:
        if not _is_int(self.layer) or self.layer < 0:
            raise SettingsError(f"layer must be a whole number of 0 or more, got {self.layer!r}")
        check_keep(self.keep)
        if not _is_int(self.chunk) or self.chunk < 1:
            raise SettingsError(f"chunk must be a whole number of 1 or more, got {self.chunk!r}")
        if not _is_int(self.growth) or self.growth < 1:
            raise SettingsError(f"growth must be a whole number of 1 or more, got {self.growth!r}")
        if not _is_number(self.penalty) or not (0 <= self.penalty < math.inf):
            raise SettingsError(f"penalty must be a finite number of 0 or more, got {self.penalty!r}")
        hints = get_type_hints(type(self))
        for name in ("query", "heads", "magnitude", "similarity", "duplication_norm"):
            choices = get_args(hints[name])
            if getattr(self, name) not in choices:
                raise SettingsError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("rope_in_magnitude", "rope_in_duplication"):
            if not isinstance(getattr(self, name), bool):
                raise SettingsError(f"{name} must be true or false, got {getattr(self, name)!r}")

    def num_keep(self, num_visual: int, keep: float | None = None) -> int:
        """Visual tokens that stay of `num_visual`: ceil(keep * n), at least 1 when there is one, all at keep 1."""
        return num_keep(num_visual, self.keep if keep is None else keep)

    def scoring(self) -> dict[str, Any]:
        """The settings of importance, which the graph computes: arguments of `importance.token_importance`."""
        return {name: getattr(self, name) for name in ("magnitude", "heads")}

    def selection(self) -> dict[str, Any]:
        """The settings that the pruning op itself carries, by attribute name."""
        names = ("chunk", "growth", "penalty", "similarity", "duplication_norm")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON: a list of `stages` (layer, keep; one today) beside what all stages share."""
        shared = asdict(self)
        stage = {name: shared.pop(name) for name in ("layer", "keep")}
        return {"stages": [stage], **shared}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PruningSettings:
        """Inverse of `to_dict`.

        Raises:
            SettingsError: an unknown or missing field, or more than one stage.
        """
        shared = dict(data)
        stages = shared.pop("stages", None)
        if not isinstance(stages, list) or len(stages) != 1 or not isinstance(stages[0], Mapping):
            raise SettingsError(f"pruning settings need exactly one stage, got {stages!r}")
        values = {**shared, **stages[0]}
        known = {field.name for field in fields(cls)}
        if values.keys() != known:
            raise SettingsError(f"pruning settings differ in {sorted(values.keys() ^ known)} from what is known")
        return cls(**values)


def check_keep(keep: float) -> None:
    """Refuse a keep ratio outside (0, 1].

    Raises:
        SettingsError: `keep` is not a number in (0, 1].
    """
    if not _is_number(keep) or not 0 < keep <= 1:
        raise SettingsError(f"keep must be a number above 0 and at most 1, got {keep!r}")


def num_keep(num_visual: int, keep: float) -> int:
    """Visual tokens that stay of `num_visual` at ratio `keep`: ceil(keep * n), between min(1, n) and n."""
    check_keep(keep)
    return min(num_visual, max(min(1, num_visual), math.ceil(keep * num_visual - KEEP_ROUNDING)))


def chunk_schedule(total: int, chunk: int = 2, growth: int = 2) -> Iterator[int]:
    """Sizes of the rounds of Algorithm 1 that choose `total` tokens: 7 -> 2, 4, 1."""
    while total > 0:
        size = min(chunk, total)
        yield size
        total -= size
        chunk *= growth


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
