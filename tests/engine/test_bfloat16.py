"""A checkpoint becomes an engine in bfloat16, from the command line."""

from __future__ import annotations

from pathlib import Path

from iwp_export.cli.main import main
from iwp_export.engine.files import read_engine
from iwp_export.engine.flavour import Flavour


def test_an_engine_of_bfloat16_is_built(rtx: Flavour, tmp_path: Path) -> None:
    """The build checks that the pruning step became a plugin layer."""
    plan = tmp_path / "tiny.plan"
    assert main(["tiny-llava", "--dtype", "bfloat16", "--target", "rtx", "--sm", "89", "-o", str(plan)]) == 0
    _, info = read_engine(plan, "full")
    assert info.manifest.decoder.dtype == "bfloat16"
    assert info.source == "tiny-llava --dtype bfloat16"
    types = {tensor.name: tensor.dtype for tensor in info.manifest.graphs["decoder"].inputs}
    assert types["past_key_values.0.key"] == types["image_features"] == "bfloat16"
