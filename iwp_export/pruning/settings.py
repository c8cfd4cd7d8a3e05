"""The settings of IWP pruning: what is kept, where, and how tokens are scored."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from iwp_export.errors import SettingsError

Select = Literal["mmr", "coverage"]
Importance = Literal[
    "kernel_value",
    "kernel",
    "value",
    "key",
    "update",
    "value_centred",
    "leave_one_out",
    "last_attention",
    "random",
    "grid",
]
Query = Literal["text_after_image", "text", "image", "last"]
QueryPool = Literal["before", "mean", "max"]
Heads = Literal["softmax", "raw"]
HeadPool = Literal["mean", "max"]
Similarity = Literal["dual_weight", "value", "key", "kernel"]
DuplicationNorm = Literal["none", "minmax"]

CONTROLS: tuple[Importance, ...] = ("last_attention", "random", "grid")
"""Importances that are no candidates: what a method must beat. They rank alone, without duplication."""

LEAST_KEEP = 1e-4
"""Below one token of 10,000 a keep ratio is a slip: no model has that many visual tokens."""
KEEP_ROUNDING = 1e-9
"""Slack of the budget's ceiling: 0.3 * 10 is 3.0000000000000004 in binary and must keep 3 tokens, not 4."""


def _setting(default: Any, unit: str, text: str) -> Any:
    """A field with a flag of `iwp-export`: its default, the name of its value and its meaning."""
    return field(default=default, metadata={"group": "pruning", "unit": unit, "text": text, "of_recipe": True})


@dataclass(frozen=True)
class PruningSettings:
    """Settings of IWP (arXiv:2604.00757), with the paper's defaults where it gives one.

    Attributes:
        layer: decoder layer (from 0) at whose input visual tokens are dropped; layers below see every token.
        keep: fraction of the visual tokens that is kept, from `LEAST_KEEP` to 1; the default of a request.
        select: `mmr` is Algorithm 1: rounds of the most important tokens, each of which lowers the priority of
            similar ones; `coverage` takes the tokens whose updates span most of the others (pivoted Cholesky), and
            uses no importance.
        chunk: tokens chosen in the first round of mmr (b0 of Algorithm 1).
        growth: factor from one round's size to the next (g of Algorithm 1).
        penalty: weight of duplication (lambda of Algorithm 1); 0 ranks by importance alone.
        importance: of a token: `kernel_value` is kappa(q, k) * ||v|| (Eq. 10); the paper's ablations are `kernel`
            kappa alone, `value` ||v||, `key` ||k||, `update` ||phi(k)^T v||_F; beyond the paper, `value_centred` the
            norm of v minus the mean v of the visual tokens, and `leave_one_out` the change of a head's output over the
            visual tokens when the token goes. Controls: `last_attention` the attention of the last token, `random`,
            and `grid`, an even spread.
        query: which tokens' queries score (Sec. 4.1).
        query_pool: `before` averages the queries and scores once (the paper); `mean` and `max` score with each query
            and pool the scores.
        heads: how heads weigh in the mean of kernels: `softmax` divides each head's kernel by its sum over the
            visual tokens, `raw` is Eq. 10 with one maximum subtracted.
        head_pool: the importance is the `mean` or the `max` over the query heads.
        similarity: redundancy of two tokens: `dual_weight` cos(v, v') * kernel(k, k') (Eq. 12); ablations:
            `value` cosine of values, `key` cosine of keys, `kernel` the Gaussian kernel of keys. mmr squares it.
        duplication_norm: `none`, or `minmax` over each round's matrix of (remaining x new) tokens.
        rope_in_importance: score importance with rotated queries and keys (App. C.3).
        rope_in_duplication: score duplication with rotated keys (App. C.3).
        draw: which of the seeded draws `random` is; a yardstick is the mean of several.

    Raises:
        SettingsError: a value is out of range, or coverage with a control, which it would not use.
    """

    layer: int = _setting(4, "N", "decoder layer, from 0, at whose input tokens are dropped")
    keep: float = _setting(0.3, "RATIO", "share of visual tokens that stays, 0.0001 to 1; a request may choose another")
    select: Select = _setting("mmr", "HOW", "mmr: important and unlike each other; coverage: they span the others")
    chunk: int = _setting(2, "N", "tokens chosen in the first round of mmr")
    growth: int = _setting(2, "N", "factor from one round's size to the next")
    penalty: float = _setting(5.0, "X", "weight of duplication; 0 ranks by importance alone")
    importance: Importance = _setting("kernel_value", "SCORE", "how much a token matters")
    query: Query = _setting("text_after_image", "WHICH", "tokens whose queries score")
    query_pool: QueryPool = _setting("before", "HOW", "score with the mean query, or pool the scores of each")
    heads: Heads = _setting("softmax", "HOW", "how heads weigh against each other")
    head_pool: HeadPool = _setting("mean", "HOW", "pool the scores of the heads")
    similarity: Similarity = _setting("dual_weight", "WHAT", "what makes two tokens alike")
    duplication_norm: DuplicationNorm = _setting("none", "HOW", "normalise duplication in each round")
    rope_in_importance: bool = _setting(False, "", "score importance with rotated queries and keys")
    rope_in_duplication: bool = _setting(True, "", "compare rotated keys")
    draw: int = _setting(0, "N", "which draw of random")

    def __post_init__(self) -> None:
        check_keep(self.keep)
        for name, least in (("layer", 0), ("chunk", 1), ("growth", 1), ("draw", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise SettingsError(f"{name} must be a whole number of {least} or more, got {value!r}")
        if not is_number(self.penalty) or not (0 <= self.penalty < math.inf):
            raise SettingsError(f"penalty must be a finite number of 0 or more, got {self.penalty!r}")
        for name in names_of_settings():
            value, allowed = getattr(self, name), choices(name)
            if allowed and value not in allowed:
                raise SettingsError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        for name in ("rope_in_importance", "rope_in_duplication"):
            if not isinstance(getattr(self, name), bool):
                raise SettingsError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.draw and self.importance != "random":
            raise SettingsError(
                f"draw {self.draw} would change nothing: importance is {self.importance!r}, not 'random'"
            )
        if self.select == "coverage" and self.importance in CONTROLS:
            raise SettingsError(
                f"coverage uses no importance, so {self.importance!r} would change nothing; use mmr with it",
                options=("select",),
            )

    def with_changes(self, **changes: Any) -> PruningSettings:
        """These settings with some fields changed. A control ranks alone by mmr unless `changes` says otherwise.

        Raises:
            SettingsError: a value is out of range.
        """
        if changes.get("importance") in CONTROLS:
            changes = {"penalty": 0.0, "select": "mmr", **changes}
        elif changes.get("select") == "coverage" and self.importance in CONTROLS:
            changes = {"importance": "kernel_value", **changes}
        if changes.get("importance", "random") != "random":
            changes = {"draw": 0, **changes}
        return replace(self, **changes)

    def num_keep(self, num_visual: int, keep: float | None = None) -> int:
        """Visual tokens that stay of `num_visual`: ceil(keep * n), at least 1 when there is one, all at keep 1."""
        keep = self.keep if keep is None else keep
        check_keep(keep)
        return min(num_visual, max(min(1, num_visual), math.ceil(keep * num_visual - KEEP_ROUNDING)))

    def scoring(self) -> dict[str, Any]:
        """The settings of importance, which the graph computes: arguments of `importance.token_importance`."""
        return {name: getattr(self, name) for name in ("importance", "query_pool", "heads", "head_pool", "draw")}

    def selection(self) -> dict[str, Any]:
        """The settings that the pruning op itself carries, by attribute name."""
        names = ("chunk", "growth", "penalty", "similarity", "duplication_norm", "select")
        return {name: getattr(self, name) for name in names}

    @property
    def scored_rotated(self) -> bool:
        """Whether importance takes rotated queries and keys; attention is made of those."""
        return self.rope_in_importance or self.importance == "last_attention"

    @property
    def scoring_query(self) -> Query:
        """Which tokens' queries score: a control that is about the last token takes that one."""
        return "last" if self.importance == "last_attention" else self.query

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON: a list of `stages` (layer, keep; one today) beside what all stages share."""
        shared = asdict(self)
        stage = {name: shared.pop(name) for name in ("layer", "keep")}
        if not self.draw:  # as files were before there were draws
            del shared["draw"]
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
        values = {"draw": 0, **shared, **stages[0]}
        known = set(names_of_settings())
        if values.keys() != known:
            raise SettingsError(f"pruning settings differ in {sorted(values.keys() ^ known)} from what is known")
        return cls(**values)


def names_of_settings() -> tuple[str, ...]:
    """The fields of `PruningSettings`, in order."""
    return tuple(each.name for each in fields(PruningSettings))


@functools.cache  # settings are made by the thousand, and type hints take milliseconds to read
def choices(name: str) -> tuple[str, ...]:
    """The words that a setting may be; none if it is a number or a switch."""
    return get_args(get_type_hints(PruningSettings)[name])


def check_keep(keep: float) -> None:
    """Refuse a keep ratio below `LEAST_KEEP` or above 1.

    Raises:
        SettingsError: `keep` is not a number in this range.
    """
    if not is_number(keep) or not LEAST_KEEP <= keep <= 1:
        raise SettingsError(f"keep must be a number from {LEAST_KEEP} to 1, got {keep!r}")


def chunk_schedule(total: int, chunk: int = 2, growth: int = 2) -> Iterator[int]:
    """Sizes of the rounds of Algorithm 1 that choose `total` tokens: 7 -> 2, 4, 1."""
    while total > 0:
        size = min(chunk, total)
        yield size
        total -= size
        chunk *= growth


def is_number(value: object) -> bool:
    """Whether a value is a number, and neither NaN nor true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
