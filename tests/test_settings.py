"""Settings: what every class refuses and converts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from iwp_export.accuracy.scoring import SCORES
from iwp_export.errors import SettingsError
from iwp_export.settings import BenchSettings, BuildSettings, CalibrationSettings, ScoreName, ValidationSettings


def test_paths_and_lists_may_be_given_either_way() -> None:
    given: Any = {"record": "a.npz", "checkpoint": Path("folder"), "keep": [0.3]}
    made = ValidationSettings(**given)
    assert (made.record, made.checkpoint, made.keep) == (Path("a.npz"), "folder", (0.3,))


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (ValidationSettings, {"device": "tpu"}, "device must be one of cpu, cuda, got 'tpu'"),
        (ValidationSettings, {"limit": 0}, "limit must be 1 or more, got 0"),
        (ValidationSettings, {"against": "none", "record": "a.npz"}, "a recording is of the checkpoint, not of none"),
        (BenchSettings, {"pairs": 50, "max_p99_ms": 5.0}, "pairs must be a whole number of 100 or more, got 50"),
        (BenchSettings, {"repeat": 2}, "repeat must be 1 or 3 to 10, got 2"),
        (BenchSettings, {"fail_if_slower": "decode"}, "fail_if_slower must be one of end-to-end, prefill"),
        (CalibrationSettings, {"samples": 0}, "samples must be 1 or more, got 0"),
        (CalibrationSettings, {"seed": 2**31}, "seed must be at most 2147483647, got 2147483648"),
        (CalibrationSettings, {"keep": [0.3, 1.5]}, "keep must be a number from 0.0001 to 1"),
        (BenchSettings, {"keep": 0.0}, "keep must be a number from 0.0001 to 1"),
        (CalibrationSettings, {"objective": "speed"}, "objective must be one of kl, agreement, accuracy"),
        (BuildSettings, {"sm": []}, "name at least one architecture"),
    ],
)
def test_what_is_out_of_range_names_its_field(kind: type, given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        kind(**given)
    assert set(caught.value.options) <= given.keys()


def test_scores_have_the_names_of_the_rules() -> None:
    assert tuple(SCORES) == get_args(ScoreName)
