"""Where pruning settings come from: the caller, a recipe's file, a recipe that ships, the paper; in this order."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iwp_export.bundle.recipe import RECIPES, PruningSource, Recipe, read_recipe, write_recipe
from iwp_export.errors import IwpError, RecipeError, SettingsError
from iwp_export.exporter import settings_source
from iwp_export.exporter.checkpoint import Checkpoint, open_checkpoint
from iwp_export.exporter.exporter import export_bundle
from iwp_export.exporter.plan import plan_export
from iwp_export.exporter.settings_source import Choice, resolve
from iwp_export.pruning.settings import PruningSettings
from tests.bundle.recipes import SETTINGS, make_recipe
from tests.exporter.tiny import ASSETS


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return open_checkpoint("tiny-llava")


@pytest.fixture(scope="module")
def remote(tiny: Checkpoint) -> Checkpoint:
    """A checkpoint of the Hub whose weights are not here yet."""
    return replace(tiny, name="llava", source="llava-hf/llava-1.5-7b-hf", is_local=False)


@pytest.fixture
def mine(tiny: Checkpoint) -> Recipe:
    return make_recipe(digest=tiny.digest())


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of shipped recipes, empty."""
    monkeypatch.setattr(settings_source, "RECIPES", tmp_path / "shipped")
    return tmp_path / "shipped"


def refused(kind: type[IwpError], *arguments: Any, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        resolve(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    return message


def test_without_a_recipe_they_are_the_papers(tiny: Checkpoint, shipped: Path) -> None:
    assert resolve(tiny) == Choice(PruningSettings(), PruningSource())
    changed = resolve(tiny, {"layer": 2, "keep": 0.3})
    assert changed == Choice(PruningSettings(layer=2), PruningSource(overridden=("layer",)))
    assert str(changed.source) == "the paper's, but for layer"


def test_a_file_gives_settings_and_single_ones_replace_its(tiny: Checkpoint, mine: Recipe, tmp_path: Path) -> None:
    file = write_recipe(mine, tmp_path / "mine.json")
    source = PruningSource("recipe", "mine.json", mine.digest, data=mine.data.digest)
    assert resolve(tiny, recipe=file) == Choice(SETTINGS, source, any_model=False)
    changed = resolve(tiny, {"keep": 0.5, "query": "last"}, str(file))
    assert changed.settings == replace(SETTINGS, keep=0.5)
    assert changed.source == replace(source, overridden=("keep",))
    assert str(changed.source) == "recipe mine.json, but for keep"


def test_a_file_goes_before_a_shipped_recipe_and_that_before_the_paper(
    tiny: Checkpoint, mine: Recipe, tmp_path: Path, shipped: Path
) -> None:
    write_recipe(replace(mine, verdict=("shipped",)), shipped / "tiny-llava.json")
    file = write_recipe(mine, tmp_path / "mine.json")
    assert resolve(tiny).source.kind == "shipped recipe"
    assert str(resolve(tiny).source) == "shipped recipe tiny-llava.json"
    assert resolve(tiny).settings == SETTINGS
    assert resolve(tiny, recipe=file).source.recipe == "mine.json"
    assert resolve(tiny, recipe="paper") == Choice(PruningSettings(), PruningSource())
    given = PruningSettings(layer=1)
    assert resolve(tiny, given) == Choice(given, PruningSource("options")) == resolve(tiny, given, "paper")


def test_a_shipped_recipe_is_found_by_digest_where_the_weights_are_here(
    tiny: Checkpoint, mine: Recipe, tmp_path: Path, shipped: Path
) -> None:
    write_recipe(make_recipe(name="tiny-llava"), shipped / "a.json")  # the name alone is not enough
    write_recipe(make_recipe(model_type="llava_next", digest=tiny.digest()), shipped / "b.json")
    assert resolve(tiny).source.kind == "paper"
    write_recipe(replace(mine, model=replace(mine.model, name="another name")), shipped / "c.json")
    assert resolve(tiny).source.recipe == "c.json"
    copy = open_checkpoint(str(shutil.copytree(ASSETS, tmp_path / "copy")))
    assert resolve(copy).source.recipe == "c.json"


def test_and_by_alias_where_they_are_not(remote: Checkpoint, tiny: Checkpoint, mine: Recipe, shipped: Path) -> None:
    write_recipe(replace(mine, model=replace(mine.model, name="llava")), shipped / "llava.json")
    found = resolve(remote)
    assert (found.source.recipe, found.settings) == ("llava.json", SETTINGS)
    assert resolve(replace(remote, source="another/llava")).source.kind == "paper"

    here = replace(tiny, name="llava")
    assert found.confirmed(here) == found.source
    write_recipe(make_recipe(name="llava"), shipped / "llava.json", force=True)
    with pytest.raises(RecipeError, match=r"shipped recipe llava\.json is for llava"):
        resolve(remote).confirmed(here)
    assert resolve(remote, any_model=True).confirmed(here).other_model == "llava"


def test_a_recipe_of_another_model_is_refused(
    tiny: Checkpoint, remote: Checkpoint, shipped: Path, tmp_path: Path
) -> None:
    file = write_recipe(make_recipe(name="my-llava"), tmp_path / "mine.json")
    message = refused(RecipeError, tiny, recipe=file)
    for part in ("my-llava (llava, digest abababababab)", f"tiny-llava (llava, digest {tiny.digest()[:12]})"):
        assert part in message
    forced = resolve(tiny, recipe=file, any_model=True)
    assert (forced.settings, forced.source.other_model) == (SETTINGS, "my-llava")
    assert str(forced.source) == "recipe mine.json of another model, my-llava"

    next_file = write_recipe(make_recipe(model_type="llava_next"), tmp_path / "next.json")
    assert "not for llava (llava)" in refused(RecipeError, remote, recipe=next_file)
    late = resolve(remote, recipe=file)
    with pytest.raises(RecipeError, match="my-llava") as caught:
        late.confirmed(tiny)
    assert caught.value.options == ("force",)


def test_weights_that_were_fetched_must_be_of_the_recipes_model(mine: Recipe, tmp_path: Path) -> None:
    plan = plan_export("tiny-llava", recipe=write_recipe(mine, tmp_path / "mine.json"))
    late = replace(plan.pruning, unconfirmed=make_recipe(name="my-llava").model)
    with pytest.raises(RecipeError, match=r"mine\.json is for my-llava .*, not for tiny-llava"):
        export_bundle(replace(plan, pruning=late), tmp_path / "out.bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


def test_a_layer_that_the_model_lacks(mine: Recipe, tmp_path: Path) -> None:
    chosen = replace(mine.candidates[0], settings=replace(SETTINGS, layer=30))
    file = write_recipe(replace(mine, settings=chosen.settings, candidates=(chosen,)), tmp_path / "mine.json")
    with pytest.raises(SettingsError, match=r"tiny-llava cannot be pruned at the recipe's layer 30; choose layer 0 "):
        plan_export("tiny-llava", recipe=file)
    assert plan_export("tiny-llava", {"layer": 3}, recipe=file).settings.layer == 3
    with pytest.raises(SettingsError, match="pruned at layer 31;"):
        plan_export("tiny-llava", {"layer": 31}, recipe=file)


def test_settings_that_cannot_be(tiny: Checkpoint, mine: Recipe, shipped: Path, tmp_path: Path) -> None:
    file = write_recipe(mine, tmp_path / "mine.json")
    assert "no pruning setting 'depth'; there are: layer, keep" in refused(SettingsError, tiny, {"depth": 3})
    assert "keep must be" in refused(SettingsError, tiny, {"keep": 2}, file)
    assert "leave one out" in refused(SettingsError, tiny, PruningSettings(), file)


def test_what_no_model_takes_is_refused_before_one_is_fetched(mine: Recipe, tmp_path: Path) -> None:
    """No network: with a Hub id every other error would be about that."""
    for changes, recipe, message in (
        ({"keep": 2}, None, "keep must be"),
        ({"select": "coverage", "importance": "grid"}, None, "coverage uses no importance"),
        ({}, tmp_path, "is a folder"),
    ):
        with pytest.raises(IwpError, match=message):
            plan_export("owner/name", changes, recipe=recipe)


def test_a_control_ranks_alone_on_a_recipe_too(tiny: Checkpoint, mine: Recipe, tmp_path: Path) -> None:
    settings = replace(SETTINGS, select="coverage")
    chosen = replace(mine.candidates[0], settings=settings)
    file = write_recipe(replace(mine, settings=settings, candidates=(chosen,)), tmp_path / "mine.json")
    found = resolve(tiny, {"importance": "grid"}, file)
    assert found.settings == replace(SETTINGS, importance="grid", penalty=0.0)
    assert found.source.overridden == ("select", "penalty", "importance")


def test_files_that_are_no_recipe(tiny: Checkpoint, mine: Recipe, shipped: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.json"
    text.write_text("layer: 3")
    assert "text.json is not JSON" in refused(RecipeError, tiny, recipe=text)
    assert "is a folder" in refused(RecipeError, tiny, recipe=tmp_path)
    assert "No such file" in refused(RecipeError, tiny, recipe=tmp_path / "none.json")
    data = json.loads(write_recipe(mine, tmp_path / "mine.json").read_text())
    text.write_text(json.dumps({**data, "schema_version": 9}))
    assert "upgrade iwp-export" in refused(RecipeError, tiny, recipe=text)
    escape = tmp_path / "a\x1b[31m.json"
    shutil.copy(tmp_path / "mine.json", escape)
    assert "cannot be printed" in refused(RecipeError, tiny, recipe=escape)


def test_shipped_recipes_are_recipes() -> None:
    """Those in the package: each can be read, and no two are for one model."""
    recipes = [read_recipe(file) for file in sorted(RECIPES.glob("*.json"))]
    assert len({recipe.model.digest for recipe in recipes}) == len({recipe.model.name for recipe in recipes})
    assert len({recipe.model.digest for recipe in recipes}) == len(recipes)
