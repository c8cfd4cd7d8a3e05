"""Views as an HTML page in one file: it asks for nothing from anywhere, runs no script, and every text is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from iwp_export.errors import OutputError, os_reason
from iwp_export.files import whole_file
from iwp_export.version import __version__
from iwp_export.view import draw
from iwp_export.view.view import View, clean

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The browser itself holds the page to it, whatever a bug may let through."""


def render(title: str, subtitle: str, views: Sequence[View]) -> str:
    """The page's text; it has no date, so that the same views are the same text.

    Args:
        title: the heading of the page, and of the first view, whose sentences are the verdict.
        subtitle: a line below it.
        views: in their order.

    Raises:
        BackendError: there are charts, and matplotlib is missing.
    """
    return _template().render(
        title=title, subtitle=subtitle, views=views, policy=POLICY, version=__version__, chart_width=draw.WIDTH,
        chart_height=draw.HEIGHT, chart_image=_chart_image, png_image=lambda png: _image("png", png), **draw.SCHEMES,
    )  # fmt: skip


def write_page(path: Path, title: str, subtitle: str, views: Sequence[View]) -> None:
    """Write `render`'s page, whole or not at all; a file that is there is replaced.

    Raises:
        BackendError: there are charts, and matplotlib is missing.
        OutputError: it cannot be written.
    """
    text = render(title, subtitle, views)
    try:
        with whole_file(path) as file:
            file.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {os_reason(error)}", options=("output",)) from error


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        finalize=_finalize, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2")


def _finalize(value: Any) -> Any:
    """What the template writes for a value; what its macros made is markup already."""
    if hasattr(value, "__html__"):
        return value
    return "" if value is None else clean(value)


def _chart_image(chart: Any, scheme: Any) -> str:
    return _image("svg+xml", draw.svg(chart, scheme))


def _image(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
