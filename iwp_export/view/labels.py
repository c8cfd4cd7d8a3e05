"""Where the text beside points of a chart goes, so that it covers few points and no other text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GAP = 4.0
"""Units between a marker and its text."""
LETTER, LINE = 7.0, 14.0
"""Units of a letter's width and of a line's height; the browser's font is not known, so this is not exact."""
PLACES = (
    (1.0, 0.0, "left", "center", 0),
    (-1.0, 0.0, "right", "center", 0),
    (0.0, 1.0, "center", "bottom", 0),
    (0.0, -1.0, "center", "top", 0),
    (0.8, 0.8, "left", "bottom", 0),
    (0.8, -0.8, "left", "top", 0),
    (-0.8, 0.8, "right", "bottom", 0),
    (-0.8, -0.8, "right", "top", 0),
    *((0.0, up, "center", side, lines) for lines in (1, 2) for up, side in ((1.0, "bottom"), (-1.0, "top"))),
)
"""The text's offset from the point in gaps, the side of it that is there, and how many lines further up or down it is;
of equally good places the first wins."""
COVERS_TEXT, LEAVES_CHART, COVERS_POINT = 20, 20, 1
"""What each counts when places are compared."""

Place = tuple[float, float, str, str, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Spot:
    """A point in units of the chart, the radius of its marker, and its text, which may be empty."""

    x: float
    y: float
    radius: float
    text: str


@dataclass(frozen=True)
class Label:
    """Text at a point: how far from it, and which side of the text is there."""

    text: str
    spot: tuple[float, float]
    offset: tuple[float, float]
    across: str
    along: str


def place(spots: Sequence[Spot], inside: Box) -> list[Label]:
    """Choose a place for each text, one after the other.

    Args:
        spots: every point of the chart.
        inside: left, bottom, right and top of where text may be.
    """
    placed: list[Box] = []
    labels = []
    for spot in spots:
        if not spot.text:
            continue
        costs = [_cost(_box(spot, choice), spots, placed, inside) for choice in PLACES]
        best = PLACES[costs.index(min(costs))]
        placed.append(_box(spot, best))
        labels.append(Label(spot.text, (float(spot.x), float(spot.y)), _offset(spot, best), best[2], best[3]))
    return labels


def _cost(box: Box, spots: Sequence[Spot], placed: Sequence[Box], inside: Box) -> int:
    outside = box[0] < inside[0] or box[1] < inside[1] or box[2] > inside[2] or box[3] > inside[3]
    points = sum(box[0] < spot.x < box[2] and box[1] < spot.y < box[3] for spot in spots)
    texts = sum(_overlap(box, other) for other in placed)
    return COVERS_TEXT * texts + LEAVES_CHART * outside + COVERS_POINT * points


def _offset(spot: Spot, choice: Place) -> tuple[float, float]:
    across, up, _, _, lines = choice
    gap = spot.radius + GAP
    return across * gap, up * (gap + lines * LINE)


def _box(spot: Spot, choice: Place) -> Box:
    across, up = _offset(spot, choice)
    width = LETTER * len(spot.text)
    left = spot.x + across - {"left": 0.0, "center": width / 2, "right": width}[choice[2]]
    bottom = spot.y + up - {"bottom": 0.0, "center": LINE / 2, "top": LINE}[choice[3]]
    return left, bottom, left + width, bottom + LINE


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
