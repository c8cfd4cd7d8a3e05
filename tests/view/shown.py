"""Views with every element, all of one text."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from iwp_export.view.view import Axis, Chart, Column, Example, Picture, Series, Table, View, distribution

NASTY = "</td></main><script src=https://x.org>alert('1')</script> & \"q\" {{ 7 * 7 }} <img src=x onerror=y> \x00\ud800"
CLEAN = NASTY.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")


def png(width: int = 3, height: int = 2) -> bytes:
    """A file."""
    buffer = BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def charts(text: str = "name") -> list[Chart]:
    """One of each kind, and distributions."""
    x, y = (0.0, 1.0, 2.0), (0.2, 0.4, 0.6)
    low, high = (0.1, 0.3, 0.5), (0.3, 0.5, 0.7)
    whole, share = Axis(f"layer {text}", "whole"), Axis(f"share {text}", "percent", 0, 1)
    many, marked = Series("many", x, y), Series(text, (2.5,), (0.8,), (0.7,), (0.85,), (text,))
    factor, times = Axis("speed-up", "factor"), Axis("ms")
    return [
        Chart("lines", "Lines", text, [Series(text, x, y, low, high), Series("other", x, low)], whole, share),
        Chart("points", "Points", text, [many, marked, Series("nobody", (), ())], factor, share),
        Chart("lines", "Steps", text, [distribution(text, y), distribution("b", high)], times, share, caption=text),
    ]


def view(text: str = "name", *, drawn: bool = True) -> View:
    """Every element a view can have."""
    table = Table((text, Column(text, number=True)), ((text, text), ("b", None)), text, frozenset({1}))
    part = View(text, (text,), notes=(text,))
    return View(
        text,
        sentences=(text, text),
        facts=((text, text),),
        charts=charts(text) if drawn else (),
        tables=(table, Table(**{**vars(table), "page_only": True})),
        examples=(Example(text, ((text, text),), (Picture(png(), text, text),)),),
        parts=(part,),
        notes=(text,),
        command=text,
    )
