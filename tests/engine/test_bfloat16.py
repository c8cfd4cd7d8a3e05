"""Engines in bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest

from iwp_export import api
from iwp_export.cli.main import main
from iwp_export.engine.build import BuildSettings
from iwp_export.engine.files import read_engine
from iwp_export.engine.flavour import Flavour


def test_a_bundle_of_bfloat16_becomes_an_engine(rtx: Flavour, bfloat16_bundle: Path, tmp_path: Path) -> None:
    """The build checks that the pruning step became a plugin layer."""
    plan = api.build(bfloat16_bundle, tmp_path / "x.plan", BuildSettings(target="rtx", sm=["89"]))
    assert read_engine(plan, "full")[1].manifest.decoder.dtype == "bfloat16"


@pytest.mark.slow
def test_a_checkpoint_becomes_one_from_the_command_line(rtx: Flavour, tmp_path: Path) -> None:
    plan = tmp_path / "tiny.plan"
    assert main(["tiny-llava", "--dtype", "bfloat16", "--target", "rtx", "--sm", "89", "-o", str(plan)]) == 0
    _, info = read_engine(plan, "full")
    assert info.manifest.decoder.dtype == "bfloat16"
    assert info.source == "tiny-llava --dtype bfloat16"
    types = {tensor.name: tensor.dtype for tensor in info.manifest.graphs["decoder"].inputs}
    assert types["past_key_values.0.key"] == types["image_features"] == "bfloat16"
