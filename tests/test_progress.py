"""Progress bars: silent where nobody watches, with the time left where the work is known."""

from __future__ import annotations

import io
import sys

import pytest

from iwp_export.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return screen


@pytest.mark.parametrize("unit", ["runs", "bytes"])
def test_time_left(terminal, unit):
    with progress("Work", 4, unit=unit) as advance:
        for _ in range(4):
            advance(1)
    assert "Work" in terminal.getvalue() and "left" in terminal.getvalue()


def test_no_time_left_of_an_unknown_length(terminal):
    with progress("Work"):
        pass
    assert "Work" in terminal.getvalue() and "left" not in terminal.getvalue()


def test_nothing_where_nobody_watches(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress("Work", 4) as advance:
        advance(4)
    assert screen.getvalue() == ""
