"""Progress bars: silent where nobody watches, with the time left where the work is known."""

from __future__ import annotations

import io
import sys

import pytest

from iwp_export.progress import progress


class Screen(io.StringIO):
    """What a terminal, or a file, is sent."""

    def __init__(self, watched: bool) -> None:
        super().__init__()
        self._watched = watched

    def isatty(self) -> bool:
        return self._watched


def shown(monkeypatch, total: float | None, unit: str = "", watched: bool = True) -> str:
    screen = Screen(watched)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("Work", total, unit=unit) as advance:
        advance(1)
    return screen.getvalue()


@pytest.mark.parametrize("unit", ["runs", "bytes"])
def test_time_left(monkeypatch, unit):
    text = shown(monkeypatch, 4, unit)
    assert "Work" in text and "left" in text


def test_no_time_left_of_an_unknown_length(monkeypatch):
    text = shown(monkeypatch, None)
    assert "Work" in text and "left" not in text


def test_nothing_where_nobody_watches(monkeypatch):
    assert shown(monkeypatch, 4, watched=False) == ""
