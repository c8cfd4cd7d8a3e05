"""Comparisons of methods: which are run, where, and with which settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import iwp_export
from calibration.studies.compare import changed, main
from calibration.studies.rivals import methods
from calibration.tiny_llava import HELDOUT
from iwp_export.bundle.recipe import read_recipe, write_recipe
from iwp_export.errors import SettingsError
from iwp_export.pruning.settings import PruningSettings

SHIPPED = Path(iwp_export.__file__).parent / "assets" / "recipes" / "tiny-llava.json"


def test_methods_at_layers_and_budgets(tiny_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "methods.json"
    options = ["--methods", "divprune", "random", "--layers", "2", "4", "--keep", "0.5", "--set", "penalty=0"]
    assert main([str(tiny_bundle), "--data", str(HELDOUT), "--limit", "3", *options, "-o", str(output)]) == 0
    report = json.loads(output.read_text())
    rows = [(row["layer"], row["method"], row["keep"]) for row in report["methods"]]
    assert rows == [(layer, method, 0.5) for layer in (2, 4) for method in ("divprune", "random")]
    assert all(set(row["accuracy"]) == {*report["keep 1"]} for row in report["methods"])
    assert report["keep 1"]["all"] > 0.6
    assert report["changes"] == ["penalty=0"]
    for row in report["methods"]:
        low, high = row["interval"]
        assert 0 <= low <= row["accuracy"]["all"] <= high <= 1
        assert high - low > 0.3, "three questions tell little"


def test_a_recipe_is_compared_at_its_own_layer(tiny_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "methods.json"
    recipe = write_recipe(read_recipe(SHIPPED), tmp_path / "some.recipe.json")
    options = ["--methods", "grid", "--keep", "0.5", "0.2", "--recipe", str(recipe)]
    assert main([str(tiny_bundle), "--data", str(HELDOUT), "--limit", "2", *options, "-o", str(output)]) == 0
    rows = json.loads(output.read_text())["methods"]
    layer = read_recipe(SHIPPED).settings.layer
    assert "Right answers of each method at keep 0.2" in output.with_suffix(".html").read_text()
    assert [(row["method"], row["layer"]) for row in rows] == [("grid", 4)] * 2 + [("iwp calibrated", layer)] * 2


def test_every_method_once_and_the_best_first(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At layers 0 and 4: methods that need a layer below are left out at 0, those before layer 0 are run once."""
    output = tmp_path / "methods.json"
    options = ["--layers", "0", "4", "--keep", "0.111", "--max-new-tokens", "1", "-o", str(output)]
    assert main([str(tiny_bundle), "--data", str(HELDOUT), "--limit", "1", *options]) == 0
    report, printed = json.loads(output.read_text()), capsys.readouterr()
    run = [(row["method"], row["layer"]) for row in report["methods"]]
    before = [name for name in methods(PruningSettings()) if name.endswith(" before layer 0")]
    expected = {(name, layer) for name in methods(PruningSettings()) for layer in (0, 4) if name not in before}
    expected -= {("fastv", 0), ("dart", 0)}
    assert len(run) == len(set(run))
    assert set(run) == expected | {(name, 0) for name in before}
    assert list(report["not run"]) == ["0"]
    assert "at layer 0 fastv is not run: it needs the layer before the pruning layer" in printed.err
    table = printed.out.splitlines()[2:]
    assert table[0].split()[:3] == ["keep", "0.111", "layer"]
    assert table[1].startswith("keep 1 ")
    shares = [float(line.split(" %")[-4].split()[-1]) for line in table[2:]]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == len(run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "fastvit"], "no method fastvit; there are: iwp, "),
        (["--methods", "fastv", "--layers", "4", "0"], "fastv cannot be run here: it needs the layer before"),
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
