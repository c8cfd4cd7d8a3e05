"""The command line's way to an engine."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from iwp_export.cli.main import main
from iwp_export.engine import build as engine_build
from iwp_export.engine.flavour import Flavour
from iwp_export.exporter.plan import ExportPlan

SMALL = ["--target", "rtx", "--sm", "86", "--max-context", "160", "--max-prompt", "128"]


def test_dry_run_says_what_the_engine_loads_on(rtx: Flavour, tiny_bundle: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["build", str(tiny_bundle), "--dry-run", *SMALL]) == 0
    shown = capsys.readouterr().out
    assert f"TensorRT-RTX {rtx.version} and a GPU of SM 86" in shown
    assert "160 tokens, 128 a call with up to 1 image(s)" in shown
    assert "settings   given in full\n" in shown
    assert main(["build", str(tiny_bundle), "--dry-run", "--json", *SMALL]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["sms"], shown["pruning_source"]["kind"]) == (["86"], "options")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sm", "87"], "cannot build for SM 87; it accepts"),
        (["--sm", "orin"], "numbers such as 86,89,120, got 'orin' (--sm)"),
        (["--sm", ","], "at least one architecture, such as 89 (--sm)"),
        (["--max-images", "9"], "or lower max_images (--max-context, --max-images)"),
        (["--keep", "2"], "keep must be a number from 0.0001 to 1"),
    ],
)
def test_errors_are_one_line(
    rtx: Flavour, tiny_bundle: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    assert main(["build", str(tiny_bundle), "-o", "x.plan", "--target", "rtx", *options]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("iwp-export: error: ") and error.count("\n") == 1


def test_an_export_to_a_plan_asks_for_tensorrt_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(engine_build, "is_installed", lambda name: False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["tiny-llava", "-o", str(tmp_path / "engine.plan")]) == 1
    error = capsys.readouterr().err
    assert "iwp-export build NAME.bundle -o NAME.plan" in error and "pip install 'iwp-export[rtx]'" in error
    assert not list(tmp_path.iterdir())


def test_an_export_to_a_plan_leaves_the_engine_alone(
    rtx: Flavour,
    half_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    def export(plan: ExportPlan, path: Path) -> Path:
        assert (plan.model.name, plan.settings.keep, plan.decoder.dtype) == ("tiny-llava", 0.25, "float16")
        return Path(shutil.copytree(half_bundle, path))

    monkeypatch.setattr("iwp_export.exporter.exporter.export_bundle", export)
    output = tmp_path / "engine.plan"
    options = ["--recipe", "paper", "--keep", "0.25", "--dtype", "float16", "-o", str(output)]
    assert main(["tiny-llava", *options, "--json", *SMALL]) == 0
    shown = capsys.readouterr()
    assert "and on nothing else" in shown.err
    assert json.loads(shown.out)["engine"] == str(output)
    assert json.loads((tmp_path / "engine.json").read_text())["limits"]["max_context"] == 160
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "engine.json",
        "engine.plan",
        "engine.processor",
        "engine.vision.plan",
    ]
    source = json.loads((tmp_path / "engine.json").read_text())["source"]
    assert source == "tiny-llava --recipe paper --keep 0.25 --dtype float16"
