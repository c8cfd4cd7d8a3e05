"""Requests at fixed times, by a fake clock."""

from __future__ import annotations

import pytest

from iwp_export.latency.loop import joined, run_loop
from tests.latency.made import Clock


def test_in_time(monkeypatch):
    clock, begun = Clock().install(monkeypatch), []

    def answer(number):
        begun.append((number, clock.now - 100))
        clock.now += 0.15

    found = run_loop("pruned", 5, 4, answer)
    assert [number for number, _ in begun] == [0, 1, 2, 3]
    assert [start for _, start in begun] == pytest.approx([0, 0.2, 0.4, 0.6])
    assert found.missed == 0 and found.delays == pytest.approx((0.0,) * 4)


def test_one_slow_answer_delays_the_next(monkeypatch):
    clock, begun = Clock().install(monkeypatch), []
    takes = iter((0.1, 0.35, 0.1, 0.1))

    def answer(number):
        begun.append(clock.now - 100)
        clock.now += next(takes)

    found = run_loop("pruned", 5, 4, answer)
    assert begun == pytest.approx([0, 0.2, 0.55, 0.65])
    assert found.lateness == pytest.approx((0, 0.15, 0.05, 0))
    assert found.delays == pytest.approx((0, 0, 0.15, 0.05))
    assert found.missed == 2


def test_turns_become_one(monkeypatch):
    clock = Clock().install(monkeypatch)
    turns = [run_loop("pruned", 10, 2, lambda number: clock.sleep(0.3)) for _ in range(2)]
    assert joined(turns).lateness == turns[0].lateness + turns[1].lateness
    assert joined(turns).missed == 4
