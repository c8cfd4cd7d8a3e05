"""Comparisons of methods: which are run, where, and with which settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calibration.tiny_llava import HELDOUT
from iwp_export.errors import SettingsError
from iwp_export.pruning.settings import PruningSettings
from iwp_export.validate.compare import changed, main


def test_methods_at_layers_and_budgets(tiny_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "methods.json"
    options = ["--methods", "diverse", "random", "--layers", "2", "4", "--keep", "0.5", "--set", "penalty=0"]
    assert main([str(tiny_bundle), "--data", str(HELDOUT), "--limit", "3", *options, "-o", str(output)]) == 0
    report = json.loads(output.read_text())
    rows = [(row["layer"], row["method"], row["keep"]) for row in report["methods"]]
    assert rows == [(layer, method, 0.5) for layer in (2, 4) for method in ("diverse", "random")]
    assert all(set(row["accuracy"]) == {*report["keep 1"]} for row in report["methods"])
    assert report["keep 1"]["all"] > 0.6
    assert report["changes"] == ["penalty=0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "fastv"], "no method fastv; there are: iwp, "),
        (["--layers", "8"], "cannot be pruned at layer 8; choose layer 0 to 7"),
        (["--set", "penalti=1"], "no setting 'penalti'"),
        (["--set", "penalty=much"], "penalty must be"),
    ],
)
def test_mistakes_cost_one_line(
    tiny_bundle: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tiny_bundle), "--data", str(HELDOUT), "--limit", "1", *options]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_settings_are_changed_by_name() -> None:
    assert changed(PruningSettings(), ["query=last", "layer=2", "rope_in_importance=true"]) == PruningSettings(
        layer=2, query="last", rope_in_importance=True
    )
    with pytest.raises(SettingsError):
        changed(PruningSettings(), ["query"])
