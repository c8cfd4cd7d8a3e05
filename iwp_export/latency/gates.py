"""What a bench must hold: tokens are dropped, always; and the limits that the caller sets, of the pruned runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from iwp_export.errors import SettingsError
from iwp_export.latency.figures import TITLES, Dropped, Latency
from iwp_export.latency.spread import RUNS_FOR_P99
from iwp_export.latency.words import drops_any, layers_of, milliseconds, ratio
from iwp_export.view.figures import Gate

Faster = Literal["end_to_end", "prefill"]
MS = 1000
DROPPED = "tokens-dropped"


@dataclass(frozen=True)
class LatencyLimits:
    """What the caller demands; None is nothing.

    Attributes:
        fail_if_slower: the phase of which pruning must be shown to be faster: the lower end of its ratio's interval
            lies above 1.
        max_ttft_ms: the 90th percentile of the time to the first token.
        max_p99_ms: the 99th percentile of the time end to end; needs 100 runs.

    Raises:
        SettingsError: a limit is no time, or there is no such phase.
    """

    fail_if_slower: Faster | None = None
    max_ttft_ms: float | None = None
    max_p99_ms: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_ttft_ms", "max_p99_ms"):
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf):
                raise SettingsError(f"{name} must be a time above 0, got {value!r}", options=(name,))
        if self.fail_if_slower not in (None, *get_args(Faster)):
            choices = ", ".join(get_args(Faster))
            raise SettingsError(
                f"fail_if_slower must be one of {choices}, got {self.fail_if_slower!r}", options=("fail_if_slower",)
            )


def gates(latency: Latency, limits: LatencyLimits | None = None) -> list[Gate]:
    """The gates of a bench, passed or not."""
    limits = limits or LatencyLimits()
    found = [_dropped(side) for side in latency.dropped]
    if not drops_any(latency):
        found = [_nothing_dropped(gate) if gate.name == DROPPED else gate for gate in found]
    if limits.fail_if_slower is not None:
        found.append(_faster(latency, limits.fail_if_slower))
    if limits.max_ttft_ms is not None:
        p90 = latency.pruned.phases["first_token"].p90
        found.append(_within("max-ttft", "p90 of the time to first token", p90, limits.max_ttft_ms))
    if limits.max_p99_ms is not None:
        p99 = latency.pruned.phases["end_to_end"].p99
        found.append(_within("max-p99", "p99 end to end", p99, limits.max_p99_ms))
    return found


def _dropped(side: Dropped) -> Gate:
    """Of the unpruned side too: a cache that lost a row there would flatter the ratio's other half."""
    wrong = [layer for layer, pair in enumerate(zip(side.expected, side.found, strict=False)) if pair[0] != pair[1]]
    same_layers = len(side.expected) == len(side.found)
    passed = same_layers and not wrong and not side.flaw
    where = f"layer {wrong[0]}: {side.found[wrong[0]]}, not {side.expected[wrong[0]]}" if wrong else side.flaw
    if not same_layers:
        where = f"{len(side.found)} layers, not {len(side.expected)}"
    return Gate(
        DROPPED if side.side == "pruned" else "tokens-kept",
        passed,
        layers_of(side.found),
        layers_of(side.expected),
        where,
        "" if passed else "build or export the artefact again, and validate it",
    )


def _nothing_dropped(gate: Gate) -> Gate:
    """The gate of an image with so few visual tokens that the keep ratio, rounded up, is all of them."""
    return replace(
        gate,
        passed=False,
        limit="fewer than unpruned",
        where=gate.where or "the pruned caches are as long as the unpruned ones",
        remedy=gate.remedy or "choose a smaller keep ratio, or images with more visual tokens",
    )


def _faster(latency: Latency, phase: str) -> Gate:
    found = latency.ratios[phase]
    passed = found.low > 1
    return Gate(
        f"faster-{phase.replace('_', '-')}",
        passed,
        f"{TITLES[phase]} {ratio(found)}",
        "lower end above 1",
        remedy="" if passed else "prune at an earlier layer, keep less, or measure more pairs on a quiet machine",
    )


def _within(name: str, what: str, seconds: float | None, limit_ms: float) -> Gate:
    limit = f"{limit_ms:g} ms"
    if seconds is None:
        return Gate(name, False, f"{what}: too few runs", limit, remedy=f"measure {RUNS_FOR_P99} pairs or more")
    return Gate(name, seconds * MS <= limit_ms, f"{what} {milliseconds(seconds)}", limit)
