"""Flags from settings: every field has one, and what is not given is the field's default."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

import pytest

from iwp_export.cli import flags
from iwp_export.pruning.settings import PruningSettings
from iwp_export.settings import BenchSettings, BuildSettings, CalibrationSettings, ValidationSettings

KINDS = (BenchSettings, BuildSettings, CalibrationSettings, PruningSettings, ValidationSettings)


def parsed(kind: type[Any], *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    flags.add(parser, kind)
    return parser.parse_args(words)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_given_is_the_default_and_every_field_has_a_flag(kind: type[Any]) -> None:
    args = parsed(kind)
    assert set(vars(args)) == {each.name for each in fields(kind)}
    assert flags.read(args, kind) == kind()


def test_values_come_back_in_their_types() -> None:
    validation = flags.read(parsed(ValidationSettings, "--keep", "0.3", "0.1", "--max-drop", "2%"), ValidationSettings)
    assert (validation.keep, validation.max_drop) == ((0.3, 0.1), 0.02)
    assert flags.read(parsed(BenchSettings, "--fail-if-slower"), BenchSettings).fail_if_slower == "end-to-end"
    assert flags.read(parsed(BuildSettings, "--sm", "86, 89"), BuildSettings).sm == ("86", "89")
    pruning = flags.read(parsed(PruningSettings, "--no-rope-in-duplication", "--layer", "2"), PruningSettings)
    assert (pruning.rope_in_duplication, pruning.layer) == (False, 2)
    with pytest.raises(argparse.ArgumentError, match="not allowed with argument --keep"):
        parsed(CalibrationSettings, "--keep", "0.3", "--speedup", "2")


@pytest.mark.parametrize(("text", "value"), [("1%", 0.01), ("0.01", 0.01), ("2.5%", 0.025), ("0", 0.0)])
def test_shares(text: str, value: float) -> None:
    assert flags.share(text) == value
