"""Settings are checked at the door, and survive a round trip through JSON."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iwp_export.errors import IwpError, SettingsError
from iwp_export.pruning.settings import (
    CONTROLS,
    LEAST_KEEP,
    PruningSettings,
    choices,
    chunk_schedule,
)


def test_defaults_are_the_papers() -> None:
    settings = PruningSettings()
    assert (settings.layer, settings.chunk, settings.growth, settings.penalty) == (4, 2, 2, 5.0)
    assert (settings.rope_in_importance, settings.rope_in_duplication) == (False, True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer", -1),
        ("layer", 1.5),
        ("layer", True),
        ("keep", 0),
        ("keep", 1e-300),
        ("keep", 1.01),
        ("keep", math.nan),
        ("keep", "0.3"),
        ("chunk", 0),
        ("growth", 0),
        ("penalty", -1.0),
        ("penalty", math.inf),
        ("query", "first"),
        ("heads", "max"),
        ("importance", "attention"),
        ("select", "top"),
        ("query_pool", "sum"),
        ("head_pool", "sum"),
        ("similarity", "cosine"),
        ("duplication_norm", "softmax"),
        ("rope_in_importance", 1),
    ],
)
def test_wrong_values_are_named(field: str, value: object) -> None:
    with pytest.raises(SettingsError, match=field) as caught:
        PruningSettings(**{field: value})  # type: ignore[arg-type]
    assert isinstance(caught.value, IwpError)
    assert repr(value) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keep", "n", "expected"),
    [(0.3, 576, 173), (1.0, 576, 576), (0.3, 10, 3), (0.111, 64, 8), (0.01, 5, 1), (0.5, 0, 0), (0.1, 30, 3)],
)
def test_budget(keep: float, n: int, expected: int) -> None:
    assert PruningSettings().num_keep(n, keep) == expected
    assert PruningSettings(keep=keep).num_keep(n) == expected


@given(st.integers(0, 5000), st.floats(LEAST_KEEP, 1.0))
def test_budget_is_the_least_that_keeps_the_ratio(n: int, keep: float) -> None:
    kept = PruningSettings().num_keep(n, keep)
    assert min(1, n) <= kept <= n
    assert kept >= keep * n - 1e-6
    assert kept <= max(1, keep * n + 1)


@given(st.integers(0, 3000), st.integers(1, 9), st.integers(1, 4))
def test_schedule_sums_to_the_budget_and_grows(total: int, chunk: int, growth: int) -> None:
    sizes = list(chunk_schedule(total, chunk, growth))
    assert sum(sizes) == total
    assert all(size > 0 for size in sizes)
    assert sizes[:-1] == [chunk * growth**i for i in range(len(sizes) - 1)]


def test_schedule_of_the_papers_example() -> None:
    assert list(chunk_schedule(173)) == [2, 4, 8, 16, 32, 64, 47]


def test_the_words_of_settings_are_known() -> None:
    assert choices("select") == ("mmr", "coverage")
    assert choices("layer") == choices("rope_in_importance") == ()
    assert set(CONTROLS) < set(choices("importance"))


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_ranks_alone(control: str) -> None:
    changed = PruningSettings(select="coverage").with_changes(importance=control)
    assert (changed.penalty, changed.select) == (0.0, "mmr")
    assert PruningSettings().with_changes(importance=control, penalty=2.0).penalty == 2.0
    assert changed.with_changes(select="coverage").importance == "kernel_value"
    with pytest.raises(SettingsError, match=f"coverage uses no importance, so '{control}'"):
        PruningSettings(select="coverage", importance=control)  # type: ignore[arg-type]


def test_the_attention_of_the_last_token_is_just_that() -> None:
    settings = PruningSettings().with_changes(importance="last_attention")
    assert (settings.scoring_query, settings.scored_rotated) == ("last", True)
    assert (PruningSettings().scoring_query, PruningSettings().scored_rotated) == ("text_after_image", False)


def test_round_trip_as_json() -> None:
    settings = PruningSettings(layer=2, keep=0.222, heads="raw", rope_in_importance=True)
    data = json.loads(json.dumps(settings.to_dict()))
    assert data["stages"] == [{"layer": 2, "keep": 0.222}]
    assert PruningSettings.from_dict(data) == settings


@pytest.mark.parametrize(
    "change",
    [
        {"stages": []},
        {"stages": [{"layer": 1, "keep": 0.5}, {"layer": 2, "keep": 0.5}]},
        {"stages": [{"layer": 1}]},
        {"novelty": 1},
    ],
)
def test_settings_that_are_not_known_are_refused(change: dict) -> None:
    with pytest.raises(SettingsError):
        PruningSettings.from_dict({**PruningSettings().to_dict(), **change})
