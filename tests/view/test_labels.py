"""Text beside points: it covers no other text, and stays in the chart, where there is room."""

from __future__ import annotations

from itertools import combinations

from iwp_export.view.labels import LETTER, LINE, Label, Spot, place

INSIDE = (0.0, 0.0, 300.0, 200.0)


def box(label: Label) -> tuple[float, float, float, float]:
    width = LETTER * len(label.text)
    left = label.spot[0] + label.offset[0] - {"left": 0.0, "center": width / 2, "right": width}[label.across]
    bottom = label.spot[1] + label.offset[1] - {"bottom": 0.0, "center": LINE / 2, "top": LINE}[label.along]
    return left, bottom, left + width, bottom + LINE


def test_texts_of_points_in_one_place_do_not_cover_each_other() -> None:
    labels = place(
        [Spot(150, 100, 4, text) for text in ("chosen", "random", "grid", "last", "paper", "one", "two")], INSIDE
    )
    for one, other in combinations(map(box, labels), 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_text_at_an_edge_stays_in_the_chart() -> None:
    for x, y in ((1, 100), (299, 100), (150, 1), (150, 199), (299, 199), (1, 1)):
        (label,) = place([Spot(x, y, 4, "random")], INSIDE)
        left, bottom, right, top = box(label)
        assert min(left, bottom) >= 0 and right <= 300 and top <= 200


def test_text_goes_where_it_covers_no_point_and_is_the_nearer_the_smaller_the_marker() -> None:
    points = [Spot(x, 100, 4, "") for x in (165, 180)]
    (label,) = place([*points, Spot(150, 100, 4, "random")], INSIDE)
    assert label.across == "right" and label.offset == (-8, 0)
    assert place([Spot(150, 100, 8, "random")], INSIDE)[0].offset == (12, 0)
    assert place(points, INSIDE) == []
