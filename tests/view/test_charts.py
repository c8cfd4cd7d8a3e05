"""Charts: their data are in the SVG, the same input gives the same bytes, and a missing matplotlib costs one line."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from iwp_export.errors import BackendError
from iwp_export.view import charts, distributions, draw, svg
from iwp_export.view.axes import Axis
from iwp_export.view.svg import Svg

pytest.importorskip("matplotlib", reason="the extra [report] is not installed")
NASTY = '<b>$x$ & "quotes" \x00 \ud800 \u0631\u0642\u0645'


def scatter(name: str = "some") -> Svg:
    many = charts.Points("candidate", (1.0, 2.0, 3.0, 3.0), (0.1, 0.5, 0.9, 0.9), hints=("one", "two", NASTY, "four"))
    best = charts.Points(NASTY, (2.5,), (0.8,), (0.7,), (0.85,), (NASTY,), marker="*", size=14)
    nobody = charts.Points("nobody", (), ())
    return charts.scatter(name, NASTY, (many, best, nobody), Axis("speed", "factor"), Axis("share", "percent"))


def group(chart: Svg, gid: str) -> ElementTree.Element:
    root = ElementTree.fromstring(chart.markup)
    (found,) = [each for each in root.iter("g") if each.get("id") == f"{chart.name}-{gid}"]
    return found


def texts(chart: Svg) -> list[str | None]:
    return [each.text for each in ElementTree.fromstring(chart.markup).iter("text")]


def test_a_scatter_has_a_marker_for_each_point_with_its_hint() -> None:
    chart = scatter()
    markers = list(group(chart, "points-0").iter("use"))
    assert len(markers) == 4 and len(list(group(chart, "points-1").iter("use"))) == 1
    assert [marker.findtext("title") for marker in markers][:2] == ["one", "two"]
    across, up = ([float(marker.get(name, "")) for marker in markers] for name in "xy")
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=1e-3) and up[0] > up[1] > up[2]


def test_text_of_a_chart_is_text_and_as_given() -> None:
    chart = scatter()
    clean = '<b>$x$ & "quotes" \ufffd \ufffd \u0631\u0642\u0645'
    assert texts(chart).count(clean) == 2  # at the point and in the legend
    assert {"share", "speed", "2x", "20 %"} <= set(texts(chart)) and "nobody" not in texts(chart)
    assert ElementTree.fromstring(chart.markup).get("aria-label") == clean


def test_series_differ_in_more_than_colour() -> None:
    same = charts.Points("a", (1.0,), (1.0,)), charts.Points("b", (2.0,), (2.0,))
    chart = charts.scatter("two", "x", same, Axis("x"), Axis("y"))
    shapes = [next(group(chart, f"points-{number}").iter("path")).get("d") for number in (0, 1)]
    assert shapes[0] != shapes[1]
    line = (1.0, 2.0), (1.0, 2.0)
    chart = charts.lines("two", "x", (charts.Line("a", *line), charts.Line("b", *line)), Axis("x"), Axis("y"))
    assert "stroke-dasharray" not in next(group(chart, "line-0").iter("path")).get("style", "")
    assert "stroke-dasharray" in next(group(chart, "line-1").iter("path")).get("style", "")


def test_a_name_that_begins_with_an_underscore_is_in_the_legend() -> None:
    both = [distributions.Values(name, (1.0, 2.0)) for name in ("_old.json", "new.json")]
    assert {"\u200b_old.json", "new.json"} <= set(texts(distributions.ecdf("two", "x", both, Axis("ms"))))


def test_a_line_has_its_points_and_its_band() -> None:
    line = charts.Line("kept", (0, 1, 2), (0.2, 0.4, 0.6), (0.1, 0.3, 0.5), (0.3, 0.5, 0.7))
    chart = charts.lines("layers", "x", (line,), Axis("layer", "whole"), Axis("share", "percent"))
    assert next(group(chart, "line-0").iter("path")).get("d", "").split().count("L") == 2
    assert len(list(group(chart, "band-0").iter("path"))) == 1
    assert {"0", "1", "2"} <= set(texts(chart)) and "0.5" not in texts(chart)


def test_each_bar_of_a_waterfall_begins_where_the_one_before_ends() -> None:
    chart = charts.waterfall("time", "x", (("vision", 10.0), ("prefill", 30.0)), Axis("ms"))
    spans = []
    for number in range(3):
        path = group(chart, f"bar-{number}").find("path")
        assert path is not None
        across = [float(point) for point in path.get("d", "").replace("z", "").split()[1::3]]
        spans.append((min(across), max(across)))
    assert spans[0][1] == pytest.approx(spans[1][0]) and spans[2] == (spans[0][0], spans[1][1])
    assert spans[1][1] - spans[1][0] == pytest.approx(3 * (spans[0][1] - spans[0][0]), rel=1e-4)
    assert {"10 (25 %)", "30 (75 %)", "40", "total"} <= set(texts(chart))


def test_a_bar_has_its_interval_and_its_text_beyond_it(tmp_path: Path) -> None:
    series = [charts.Bar("one", 0.5, "50 %", interval=(0.3, 0.9)), charts.Bar("two", 0.7, "70 %")]
    chart = charts.bars("shares", "two shares", series, Axis("share", "percent", 0.0, 1.0))
    assert len(list(group(chart, "interval-0").iter("use"))) == 2
    assert [each for each in ElementTree.fromstring(chart.markup).iter("g") if "interval-1" in each.get("id", "")] == []
    svg.write_picture(tmp_path / "two.svg", [chart, charts.bars("again", "again", series, Axis("share"))])
    root = ElementTree.parse(tmp_path / "two.svg").getroot()
    inner = [each for each in root if each.tag.endswith("}svg")]
    tops = [float(each.get("y", "")) for each in inner]
    assert len(inner) == 2
    assert tops == [0.0, float(inner[0].get("height", ""))]


@pytest.mark.parametrize("count", [1, 7, 5000])
def test_distributions_hold_every_value_but_stay_small(count: int) -> None:
    series = [distributions.Values(name, tuple(math.sin(step) for step in range(count))) for name in ("a", "b")]
    share = distributions.ecdf("share", "x", series, Axis("ms"))
    steps = next(group(share, "ecdf-1").iter("path")).get("d", "").split().count("L")
    assert steps == 2 * count or distributions.ECDF_STEPS < steps <= 2 * distributions.ECDF_STEPS < count
    assert {"p50", "p90", "p99"} <= set(texts(share)) and len(share.markup) < 90_000
    assert len(distributions.histogram("runs", "x", series, Axis("ms")).markup) < 30_000


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (charts.Points("a", (1.0, 2.0), (1.0,)), "2 points, but a list of 1"),
        (charts.Points("a", (1.0,), (math.nan,)), "not finite"),
        (charts.Points("a", (1.0,), (1.0,), labels=("x", "y")), "1 points, but a list of 2"),
    ],
)
def test_what_cannot_be_drawn_is_refused(points: charts.Points, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        charts.scatter("some", "x", (points,), Axis("x"), Axis("y"))


def test_a_name_must_be_an_id_and_values_must_be_there() -> None:
    with pytest.raises(ValueError, match="lower-case letters"):
        scatter('x" onload="')
    with pytest.raises(ValueError, match="no values"):
        distributions.ecdf("none", "x", [distributions.Values("a", ())], Axis("ms"))


def test_the_same_input_gives_the_same_bytes_in_every_process_whatever_matplotlibrc_says(tmp_path: Any) -> None:
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nsvg.fonttype: path\naxes.grid: False\n")
    script = (
        "from iwp_export.view import charts; from iwp_export.view.axes import Axis\n"
        "many = charts.Points('a', (1.0, 2.0), (3.0, 4.0), labels=('b', 'c'))\n"
        "print(charts.scatter('some', 'x', (many,), Axis('x'), Axis('y')).markup)"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, **extra}, check=True, capture_output=True, text=True
        ).stdout
        for extra in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2", "MATPLOTLIBRC": str(tmp_path)})
    }
    assert len(printed) == 1
    assert scatter().markup == scatter().markup


def test_nothing_of_matplotlib_is_changed_for_the_program_around_it() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    scatter()
    assert dict(matplotlib.rcParams) == before


def test_a_missing_matplotlib_costs_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendError, match=r"^charts need matplotlib; to get it: pip install 'iwp-export\[report\]'$"):
        draw.check_installed()
