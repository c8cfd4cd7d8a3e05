"""Draws with matplotlib and makes of it an SVG element for a page: its colours, fonts and width are the page's."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from iwp_export.errors import OutputError, os_reason
from iwp_export.files import whole_file
from iwp_export.view.draw import check_installed
from iwp_export.view.text import clean

WIDTH = 400.0
"""Units of a chart's width. It scales to its box: text of 12 units has 10 pixels on a phone and 15 on a desktop."""
FONT_SIZE = 12.0
INK, QUIET, FAINT = "#010000", "#020000", "#030000"
SERIES = tuple(f"#0400{number:02x}" for number in range(6))
"""Stand-ins, since matplotlib knows no variables of CSS; `PAGE_COLOURS` says what becomes of them."""
PALETTE = ("#0072b2", "#c44e00", "#00795a", "#a8468a", "#8a6100", "#5b6470")
"""Okabe and Ito's colours, which differ for colour-blind readers too, darkened to 4.5:1 on white."""
PAGE_COLOURS = {
    INK: "var(--ink, #1b1f24)",
    QUIET: "var(--quiet, #5b6470)",
    FAINT: "var(--line, #d5dae0)",
    **{stand_in: f"var(--c{number}, {PALETTE[number]})" for number, stand_in in enumerate(SERIES)},
}
NAME = re.compile("[a-z][a-z0-9-]*")
XLINK = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Svg:
    """A chart: `markup` is an `<svg>` element for HTML, all its ids begin with `name`; `alt` says what it shows."""

    name: str
    alt: str
    markup: str


def write_picture(path: Path, charts: Sequence[Svg]) -> None:
    """Write charts below each other as a picture of their own, on white; a file that is there is replaced.

    Raises:
        OutputError: the file cannot be written.
    """
    parts, top, width = [], 0.0, WIDTH
    for chart in charts:
        element = ElementTree.fromstring(chart.markup)
        left, _, wide, high = (float(number) for number in element.get("viewBox", "").split())
        element.attrib.update({"x": "0", "y": f"{top:g}", "width": f"{wide:g}", "height": f"{high:g}"})
        parts.append(ElementTree.tostring(element, encoding="unicode"))
        top, width = top + high, max(width, wide - left)
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {top:g}" width="{2 * width:g}" '
        f'font-family="system-ui, sans-serif">\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
    try:
        with whole_file(path) as file:
            file.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {os_reason(error)}", options=("picture",)) from error


def draw(
    name: str,
    alt: str,
    height: float,
    paint: Callable[[Any, Any], None],
    titles: Mapping[str, Sequence[str]] | None = None,
) -> Svg:
    """An SVG element of what `paint` draws; the same input gives the same bytes.

    Args:
        name: lower-case letters, digits and hyphens; another for every chart of a page.
        alt: what the chart shows, for those who cannot see it.
        height: in units of which the chart is `WIDTH` wide.
        paint: draws into a matplotlib figure and its axes.
        titles: by the gid of a group of markers, what hovering over each of them shows.

    Raises:
        BackendError: matplotlib is missing.
        ValueError: a name that cannot be an id.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"a chart's name has lower-case letters, digits and hyphens, got {name!r}")
    check_installed()
    import matplotlib
    from matplotlib.figure import Figure

    buffer = BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser has fonts of its own
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
        matplotlib.rcParams.update(_style(name))
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
        paint(figure, figure.add_subplot())
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    return Svg(name, alt, _for_page(root, name, alt, titles or {}))


def _style(name: str) -> dict[str, Any]:
    colours = ("axes.labelcolor", "text.color", "xtick.labelcolor", "ytick.labelcolor")
    return {
        **dict.fromkeys(colours, INK),
        "axes.edgecolor": QUIET,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": QUIET,
        "ytick.color": QUIET,
        "grid.color": FAINT,
        "grid.linewidth": 0.8,
        "font.size": FONT_SIZE,
        "axes.labelsize": FONT_SIZE,
        "axes.titlesize": FONT_SIZE,
        "legend.fontsize": FONT_SIZE,
        "xtick.labelsize": FONT_SIZE,
        "ytick.labelsize": FONT_SIZE,
        "legend.frameon": False,
        "lines.linewidth": 2.0,
        "text.parse_math": False,  # a prompt may hold dollar signs
        "svg.fonttype": "none",  # text stays text: it can be searched, and is read aloud
        "svg.hashsalt": name,
    }


def _for_page(root: ElementTree.Element, name: str, alt: str, titles: Mapping[str, Sequence[str]]) -> str:
    """The element without namespaces, metadata and style sheet, its ids prefixed and its colours the page's."""
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            if key == XLINK:
                del element.attrib[key]
                element.set("href", value.replace("#", f"#{name}-", 1))
            else:
                element.set(key, f"{name}-{value}" if key == "id" else _page_value(value, name))
    for group in root.iter("g"):
        hints = titles.get(group.get("id", "").removeprefix(f"{name}-"), ())
        for marker, hint in zip(group.iter("use"), hints, strict=False):
            ElementTree.SubElement(marker, "title").text = clean(hint)
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update({"class": "chart", "viewBox": box, "role": "img", "aria-label": clean(alt)})
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    _strip_layout(root)
    return ElementTree.tostring(root, encoding="unicode")


def _page_value(value: str, name: str) -> str:
    value = value.replace("url(#", f"url(#{name}-")
    value = re.sub("font-family: [^;]*; ?", "", value)  # the page's own is inherited
    value = re.sub(r"font: (?:\d+ )?([\d.]+)px [^;]*", r"font-size: \1px", value)
    return re.sub("#0[1-4]00[0-9a-f]{2}", lambda match: PAGE_COLOURS.get(match[0], match[0]), value)


def _strip_layout(element: ElementTree.Element) -> None:
    """Drop the line breaks between elements, which are a tenth of the file."""
    for child in element.iter():
        child.tail = None
        if child.text is not None and not child.text.strip():
            child.text = None
