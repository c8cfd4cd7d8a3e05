"""Recipes on the command line: export takes them, and export, inspect and run say so."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from iwp_export.bundle.recipe import PruningSource, write_recipe
from iwp_export.bundle.store import Bundle
from iwp_export.cli.main import main
from iwp_export.exporter import settings_source
from iwp_export.exporter.checkpoint import open_checkpoint
from tests.bundle.recipes import SETTINGS, make_recipe
from tests.cli.refusals import fails
from tests.conftest import graphs_of


@pytest.fixture(scope="module")
def recipe():
    return make_recipe(digest=open_checkpoint("tiny-llava").digest())


@pytest.fixture
def file(recipe, tmp_path):
    return write_recipe(recipe, tmp_path / "mine.json")


@pytest.fixture
def shipped(recipe, tmp_path, monkeypatch):
    """A recipe for tiny-llava that ships with the package."""
    monkeypatch.setattr(settings_source, "RECIPES", tmp_path / "shipped")
    return write_recipe(recipe, tmp_path / "shipped" / "tiny-llava.json")


def dry_run(capsys, *options: object) -> dict:
    assert main(["tiny-llava", *map(str, options), "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_options_go_before_a_file_before_a_shipped_recipe_before_the_paper(capsys, shipped, recipe, tmp_path):
    settings = replace(SETTINGS, layer=1)
    chosen = replace(recipe.candidates[0], settings=settings)
    mine = write_recipe(replace(recipe, settings=settings, candidates=(chosen,)), tmp_path / "mine.json")
    for options, source, layer, keep in (
        ([], "shipped recipe tiny-llava.json", 2, 0.25),
        (["--keep", "0.25"], "shipped recipe tiny-llava.json", 2, 0.25),
        (["--recipe", mine], "recipe mine.json", 1, 0.25),
        (["--recipe", mine, "--keep", "0.5", "--layer", "3"], "recipe mine.json, but for layer, keep", 3, 0.5),
        (["--recipe", "paper"], "the paper's", 4, 0.3),
        (["--recipe", "paper", "--keep", "0.5"], "the paper's, but for keep", 4, 0.5),
    ):
        plan = dry_run(capsys, *options)
        assert plan["pruning"]["stages"] == [{"layer": layer, "keep": keep}]
        assert main(["tiny-llava", *map(str, options), "--dry-run"]) == 0
        assert f"settings  {source}\n" in capsys.readouterr().out
    assert dry_run(capsys)["pruning_source"]["digest"] == recipe.digest


def test_a_control_replaces_what_a_recipe_would_rank_by(capsys, shipped):
    plan = dry_run(capsys, "--importance", "random")
    assert (plan["pruning"]["penalty"], plan["pruning"]["stages"][0]["layer"]) == (0.0, 2)
    assert plan["pruning_source"]["overridden"] == ["penalty", "importance"]


def test_export_inspect_and_run_say_the_recipe(capsys, file, tmp_path, recipe, half_bundle):
    bundle = tmp_path / "out.bundle"
    with graphs_of(half_bundle):
        assert main(["tiny-llava", "--recipe", str(file), "--keep", "0.5", "-o", str(bundle)]) == 0
    said = "recipe mine.json, but for keep"
    assert capsys.readouterr().out == f"wrote {bundle}; settings: {said}\n"
    source = PruningSource("recipe", "mine.json", recipe.digest, overridden=("keep",), data=recipe.data.digest)
    manifest = Bundle.open(bundle).manifest
    assert (manifest.pruning, manifest.pruning_source) == (replace(SETTINGS, keep=0.5), source)

    assert main(["inspect", str(bundle)]) == 0
    assert f"{said} (SHA-256 {recipe.digest[:12]})" in capsys.readouterr().out
    assert main(["inspect", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pruning_source"]["digest"] == recipe.digest

    asked = ["run", str(bundle), "--prompt", "how many digits ?", "--max-new-tokens", "1"]
    assert main(asked) == 0
    assert capsys.readouterr().err.endswith(f"; settings: {said}\n")
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pruning_source"]["overridden"] == ["keep"]


def test_a_recipe_of_another_model_needs_force(capsys, tmp_path):
    file = write_recipe(make_recipe(name="my-llava"), tmp_path / "mine.json")
    before = set(tmp_path.iterdir())
    for more in (["--dry-run"], ["-o", str(tmp_path / "out.bundle")]):
        line = fails(capsys, "tiny-llava", "--recipe", file, *more)
        assert "is for my-llava (llava, digest abababababab), not for tiny-llava (llava, digest " in line
        assert line.endswith("(--force)")
    assert set(tmp_path.iterdir()) == before
    assert dry_run(capsys, "--recipe", file, "--force")["pruning_source"]["other_model"] == "my-llava"


def test_what_is_no_recipe_is_one_line(capsys, dry, file, tmp_path):
    data = json.loads(file.read_text())
    layered = data | {"settings": data["settings"] | {"stages": [{"layer": 99, "keep": 0.25}]}}
    contents = {
        "text.json": "layer: 2",
        "future.json": json.dumps({**data, "schema_version": 2}),
        "edited.json": json.dumps(layered),
        "bundle.json": '{"format": "iwp-bundle", "schema_version": 3}',
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    shutil.copy(file, tmp_path / "a\x1b[31m.json")
    for name, message in (
        ("text.json", "is not JSON"),
        ("future.json", "upgrade iwp-export"),
        ("edited.json", "changed by hand"),
        ("bundle.json", "is not a recipe"),
        ("", "is a folder"),
        ("none.json", "No such file"),
        ("a\x1b[31m.json", "cannot be printed"),
    ):
        line = fails(capsys, "tiny-llava", "--recipe", tmp_path / name, "-o", tmp_path / "out.bundle", *dry)
        assert message in line and line.isprintable()
    assert not (tmp_path / "out.bundle").exists()


def test_a_layer_that_the_model_lacks_is_one_line(capsys, dry, recipe, tmp_path):
    settings = replace(SETTINGS, layer=30)
    chosen = replace(recipe.candidates[0], settings=settings)
    file = write_recipe(replace(recipe, settings=settings, candidates=(chosen,)), tmp_path / "deep.json")
    line = fails(capsys, "tiny-llava", "--recipe", file, "-o", tmp_path / "out.bundle", *dry)
    assert "cannot be pruned at the recipe's layer 30" in line


def test_a_dry_run_does_not_mind_an_output_that_is_there(capsys, tiny_bundle: Path):
    assert main(["tiny-llava", "-o", str(tiny_bundle), "--dry-run"]) == 0
