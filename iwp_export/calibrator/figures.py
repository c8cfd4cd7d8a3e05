"""A recipe's candidates in the order and the words of its page, and their chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

from iwp_export.bundle.recipe import CandidateFigures, Recipe
from iwp_export.pruning.settings import PruningSettings
from iwp_export.view import charts
from iwp_export.view.axes import Axis
from iwp_export.view.figures import interval
from iwp_export.view.svg import Svg

Kind = Literal["chosen", "default", "control", "candidate", "dropped"]
NO_BREAK = "\u00a0"
"""Keeps a setting's name and its value on one line of a narrow table."""


class Difference(NamedTuple):
    """A setting, its value and the other's, as text."""

    name: str
    value: str
    other: str


@dataclass(frozen=True)
class Entry:
    """A candidate on the page.

    Attributes:
        number: its place in the order of `entries`, from 1.
        figures: what was measured.
        kind: how it is marked; a candidate that is the paper's settings and chosen is `chosen`.
        words: where it differs from the paper's settings; empty if nowhere.
    """

    number: int
    figures: CandidateFigures
    kind: Kind
    words: str

    @property
    def says(self) -> str:
        """What it is, in words."""
        roles = {"default": "the paper's settings", "control": "control"}
        return ", ".join(filter(None, ("chosen" if self.figures.chosen else "", roles.get(self.figures.role, ""))))


def paper_settings(recipe: Recipe) -> PruningSettings:
    """The paper's settings at the recipe's budget: the default that was tried, or else the package's."""
    tried = [figures.settings for figures in recipe.candidates if figures.role == "default"]
    return tried[0] if tried else PruningSettings()


def differences(settings: PruningSettings, other: PruningSettings) -> list[Difference]:
    """The settings that differ, in the order of their declaration."""
    return [row for row in all_settings(settings, other) if row.value != row.other]


def all_settings(settings: PruningSettings, other: PruningSettings) -> list[Difference]:
    """Every setting beside the other's."""
    names = [field.name for field in fields(settings)]
    return [Difference(name, _shown(getattr(settings, name)), _shown(getattr(other, name))) for name in names]


def entries(recipe: Recipe) -> list[Entry]:
    """All candidates, best first by the recipe's objective; equal ones in their order in the recipe.

    Those dropped in earlier rounds come last, the latest first: few samples may have flattered them.
    """
    paper = paper_settings(recipe)
    most = max(figures.samples for figures in recipe.candidates)
    measures: dict[str, Callable[[CandidateFigures], float]] = {
        "kl": lambda figures: figures.kl,
        "agreement": lambda figures: -figures.agreement,
        "accuracy": lambda figures: -(figures.accuracy or 0.0),
    }

    def rank(figures: CandidateFigures) -> tuple[int, float, float]:
        met = figures.samples if _kind(figures, most) == "dropped" else most
        return most - met, measures[recipe.search.objective](figures), figures.kl

    made = []
    for number, figures in enumerate(sorted(recipe.candidates, key=rank), 1):
        changes = differences(figures.settings, paper)
        words = ", ".join(f"{row.name}{NO_BREAK}{row.value}" for row in changes)
        made.append(Entry(number, figures, _kind(figures, most), words))
    return made


def cost_chart(measure: Literal["agreement", "accuracy"], tried: Sequence[Entry]) -> Svg:
    """Agreement or accuracy of each candidate against the speed-up of its prefill, the special ones marked.

    Raises:
        BackendError: matplotlib is missing.
    """
    title = {"agreement": "agreement with the unpruned model", "accuracy": "right answers"}[measure]
    looks: tuple[tuple[Kind, str, int, str, float], ...] = (
        ("dropped", "dropped early", 5, "o", 5),
        ("candidate", "candidate", 0, "o", 7),
        ("control", "control", 3, "^", 9),
        ("default", "the paper's", 1, "s", 9),
        ("chosen", "chosen", 2, "*", 15),
    )
    series = []
    for kind, name, colour, marker, size in looks:
        found = [entry for entry in tried if entry.kind == kind and _share(entry, measure) is not None]
        series.append(_points(found, measure, name, colour, marker, size))
    alt = (
        f"{title.capitalize()} of {len(tried)} candidates against the speed-up of the prefill; the table has the values"
    )
    x_axis = Axis("speed-up of the prefill, by operations", "factor")
    return charts.scatter(f"cost-{measure}", alt, series, x_axis, Axis(title, "percent"))


def _points(found: Sequence[Entry], measure: str, name: str, colour: int, marker: str, size: float) -> charts.Points:
    shares = [_share(entry, measure) or 0.0 for entry in found]
    marked = bool(found) and found[0].kind in ("control", "default", "chosen")
    ends = [interval(share, entry.figures.samples) for share, entry in zip(shares, found, strict=True)]
    return charts.Points(
        name,
        tuple(entry.figures.prefill_speedup for entry in found),
        tuple(shares),
        low=tuple(low for low, _ in ends) if marked else (),
        high=tuple(high for _, high in ends) if marked else (),
        labels=tuple(_label(entry) for entry in found) if marked else (),
        hints=tuple(f"No. {entry.number}: {entry.words or entry.says}" for entry in found),
        colour=colour,
        marker=marker,
        size=size,
    )


def _kind(figures: CandidateFigures, most: int) -> Kind:
    if figures.chosen:
        return "chosen"
    if figures.role != "candidate":
        return figures.role
    return "candidate" if figures.samples == most else "dropped"


def _label(entry: Entry) -> str:
    return entry.figures.settings.importance if entry.kind == "control" else entry.says


def _share(entry: Entry, measure: str) -> float | None:
    value: float | None = getattr(entry.figures, measure)
    return value


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
