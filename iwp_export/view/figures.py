"""What every proof says the same way: gates, intervals, and how shares, times and sizes are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iwp_export.view.view import Table, View


@dataclass(frozen=True)
class Gate:
    """One requirement and what was found.

    Attributes:
        name: what is required, such as `logits` or `max-drop`.
        passed: whether it holds.
        measured: what was found, with its unit.
        limit: what was allowed, with its unit.
        where: the worst place, such as a sample, a layer and a token; empty if there is only one.
        remedy: what to do about a failure; empty if it holds, or if nothing in particular would help.
    """

    name: str
    passed: bool
    measured: str
    limit: str
    where: str = ""
    remedy: str = ""


def gates_view(gates: Sequence[Gate]) -> View:
    """A table of gates, failures first, and what to do about them."""
    ordered = sorted(gates, key=lambda gate: gate.passed)
    rows = [
        (gate.name, "passed" if gate.passed else "FAILED", gate.measured, gate.limit, gate.where) for gate in ordered
    ]
    failed = [gate for gate in ordered if not gate.passed]
    caption = f"{len(failed)} of {len(gates)} gates failed" if failed else f"All {len(gates)} gates hold"
    columns = ("gate", "", "measured", "allowed", "where")
    remedies = dict.fromkeys(f"{gate.name}: {gate.remedy}" for gate in failed if gate.remedy)
    return View("Gates", tables=(Table(columns, rows, caption, frozenset(range(len(failed)))),), notes=tuple(remedies))


def strict_gate(doubts: Sequence[str]) -> Gate:
    """What makes figures unreliable, as a gate; a report has the warnings themselves, with what to do about each."""
    count = "1 warning" if len(doubts) == 1 else f"{len(doubts)} warnings"
    return Gate("no warnings", not doubts, count, "0 warnings")


RESAMPLES = 4000
LEVEL = 0.95
DRAWN_AT_ONCE = 2**21
"""Samples drawn at once by a bootstrap, which bounds its memory."""
NORMAL_95 = 1.959964
"""Standard deviations of the normal distribution on either side that hold 95 %."""


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def standard_error(values: npt.ArrayLike) -> float:
    """Of the mean of values [n]; 0 of a single one."""
    array = np.asarray(values, float)
    return float(array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else 0.0


def bootstrap_mean(values: npt.ArrayLike, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of the mean of values [n]; the same for the same seed.

    Of differences of two things on the same samples it is their paired interval.
    """
    found = bootstrap_figure(np.asarray(values, float)[None], lambda means: means[0], seed)
    assert found is not None  # a mean is finite
    return found


def bootstrap_figure(
    columns: npt.ArrayLike, figure: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]], seed: int = 0
) -> Interval | None:
    """Percentile bootstrap interval of a figure that is made of means over samples.

    Args:
        columns: [c, n], c values of each of n samples, which are drawn together: paired.
        figure: the figure [draws] from the means [c, draws].
        seed: the same seed gives the same interval.

    Returns:
        The figure and its interval; None if it is not finite. Draws of which it is not finite are left out.
    """
    array = np.asarray(columns, float)
    rng, count = np.random.default_rng(seed), array.shape[1]
    step = max(1, DRAWN_AT_ONCE // count)
    found = []
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = float(figure(array.mean(1, keepdims=True))[0])
        for start in range(0, RESAMPLES, step):
            draws = rng.integers(count, size=(min(step, RESAMPLES - start), count))
            found.append(figure(np.stack([column[draws].mean(1) for column in array])))
    values = np.concatenate(found)
    values = values[np.isfinite(values)]
    if not math.isfinite(whole) or not values.size:
        return None
    return around(whole, values)


def around(found: float, draws: npt.NDArray[np.float64]) -> Interval:
    """A figure and the percentile interval of its draws."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(found, float(low), float(high))


def interval(share: float, samples: int) -> tuple[float, float]:
    """95 % interval of a share by Wilson's score, which has a width at 0 and 1 too; it always holds `share`."""
    spread = NORMAL_95**2 / samples
    middle = (share + spread / 2) / (1 + spread)
    reach = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return min(share, middle - reach), max(share, middle + reach)


def share_of(holds: Sequence[float]) -> Interval:
    """The mean of values from 0 to 1, one at least, with Wilson's interval."""
    mean = float(np.mean(holds))
    return Interval(mean, *interval(mean, len(holds)))


def samples_for(share: float) -> int:
    """Samples of which all must hold for the lower end of `interval` to reach a share below 1."""
    return math.ceil(NORMAL_95**2 * share / (1 - share) - 1e-9)


def percent(share: float) -> str:
    """A share in per cent with one decimal: 97.9 %."""
    return f"{100 * share:.1f} %"


def spread(found: Interval) -> str:
    """A share with its 95 % interval: 97.9 % (95.1 to 99.3)."""
    return f"{percent(found.mean)} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def milliseconds(seconds: float) -> str:
    """A time in milliseconds, three figures: 12.3 ms."""
    value = 1000 * seconds
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"
