"""Charts: what is drawn, in both schemes, the same bytes again, and what a missing matplotlib costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import pytest

from iwp_export.errors import BackendError
from iwp_export.view import draw
from iwp_export.view.view import Axis, Chart, Series, one_line
from tests.view.shown import NASTY, charts

pytest.importorskip("matplotlib", reason="the extra [report] is not installed")
LINES, POINTS, STEPS = range(3)
SVG = "{http://www.w3.org/2000/svg}"


def drawn(chart: Chart, scheme: Literal["light", "dark"] = "light") -> ElementTree.Element:
    return ElementTree.fromstring(draw.svg(chart, scheme))


def texts(root: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in root.iter(f"{SVG}text")]


def styles(root: ElementTree.Element, colour: str) -> list[str]:
    return [each.get("style", "") for each in root.iter() if colour in each.get("style", "")]


@pytest.mark.parametrize("chart", charts(NASTY), ids=lambda chart: chart.title)
def test_every_kind_is_drawn_with_its_text_as_given_in_both_schemes(chart: Chart) -> None:
    short = one_line(NASTY, draw.NAME_LENGTH)
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for scheme in schemes:
        colours = draw.SCHEMES[scheme]
        root = drawn(chart, scheme)
        assert texts(root).count(short) == {"lines": 1, "points": 2}[chart.kind]
        assert all(colour.encode() in draw.svg(chart, scheme) for colour in (colours.ink, *colours.series[:2]))
        assert root.get("viewBox") == f"0 0 {draw.WIDTH} {draw.HEIGHT}"


def test_axes_show_shares_factors_and_whole_numbers() -> None:
    lines, points = texts(drawn(charts()[LINES])), texts(drawn(charts()[POINTS]))
    assert {"0", "1", "2", "20 %", "layer name", "share name"} <= set(lines) and "0.5" not in lines
    assert {"1x", "2x", "100 %"} <= set(points) and "nobody" not in points


def test_dollar_signs_are_no_formulas_and_an_underscore_hides_no_name() -> None:
    both = [Series(name, (1.0, 2.0), (1.0, 2.0)) for name in ("_old.json", "$x$")]
    assert {"\u200b_old.json", "$x$"} <= set(texts(drawn(Chart("lines", "t", "a", both, Axis("x"), Axis("y")))))


def test_series_differ_in_more_than_colour() -> None:
    lines, points = (drawn(charts()[kind]) for kind in (LINES, POINTS))
    first, second = draw.SCHEMES["light"].series[:2]
    dashed = [any("stroke-dasharray" in style for style in styles(lines, colour)) for colour in (first, second)]
    assert dashed == [False, True]
    shapes = {each.get("d") for each in points.iter(f"{SVG}path") if second in each.get("style", "")}
    assert shapes.isdisjoint({each.get("d") for each in points.iter(f"{SVG}path") if first in each.get("style", "")})


def test_contrast_is_enough_to_read_by() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(one: str, other: str) -> float:
        bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
        return (bright + 0.05) / (dim + 0.05)

    for scheme in draw.SCHEMES.values():
        for colour in (scheme.ink, scheme.quiet, *scheme.series):
            assert contrast(colour, scheme.paper) >= 4.5
        assert contrast(scheme.ink, scheme.wash) >= 4.5


def test_the_same_chart_is_the_same_bytes_in_every_process_whatever_matplotlibrc_says(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nsvg.fonttype: path\naxes.grid: False\n")
    script = (
        "from iwp_export.view import draw; from tests.view.shown import charts\n"
        "for chart in charts(): print(draw.svg(chart, 'dark').decode())"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, **extra}, check=True, capture_output=True, text=True
        ).stdout
        for extra in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2", "MATPLOTLIBRC": str(tmp_path)})
    }
    (text,) = printed
    assert "font: 30px" not in text and "dc:date" not in text


def test_nothing_of_matplotlib_is_changed_for_the_program_around_it() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    drawn(charts()[STEPS])
    assert dict(matplotlib.rcParams) == before


def test_a_missing_matplotlib_costs_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendError, match=r"^charts need matplotlib; to get it: pip install 'iwp-export\[report\]'$"):
        draw.svg(charts()[LINES], "light")
