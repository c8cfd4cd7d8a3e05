"""Recipes: what is written is read, and what is no recipe is one line."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iwp_export.bundle.document import Document
from iwp_export.bundle.recipe import RECIPE_JSON, PruningSource, Recipe, RecipeModel, read_recipe, write_recipe
from iwp_export.bundle.schema import Flaw, from_json, to_json
from iwp_export.errors import OutputError, RecipeError
from tests.bundle.recipes import make_recipe


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_recipe(make_recipe(), tmp_path / "recipe.json")


def refused(path: Path | str) -> str:
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    return message


def sealed(**changes: Any) -> dict[str, Any]:
    """A recipe's JSON with changed fields and the digest that belongs to them."""
    from iwp_export.bundle.document import _digest_of

    data = {**RECIPE_JSON.to_dict(make_recipe()), **changes}
    return {**data, "digest": _digest_of(data)}


def test_what_is_written_is_read(file: Path) -> None:
    assert read_recipe(file) == make_recipe()
    data = json.loads(file.read_text())
    assert list(data)[:4] == ["format", "schema_version", "digest", "settings"]
    assert (data["format"], data["schema_version"]) == ("iwp-recipe", 1)
    assert data["digest"] == make_recipe().digest != make_recipe(name="other").digest
    assert data["settings"]["stages"] == [{"layer": 2, "keep": 0.25}]


def test_recipes_do_not_age_with_bundles() -> None:
    """A bundle's schema version rises without a recipe's: other documents say their own."""
    other: Document[Recipe] = replace(RECIPE_JSON, version=7)
    assert other.to_dict(make_recipe())["schema_version"] == 7
    with pytest.raises(RecipeError, match=r"has schema version 7, this version reads 1: upgrade iwp-export$"):
        RECIPE_JSON.from_dict(other.to_dict(make_recipe()), "it")
    with pytest.raises(RecipeError, match=r"has schema version 1, this version reads 7: calibrate again$"):
        other.from_dict(RECIPE_JSON.to_dict(make_recipe()), "it")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a recipe: it has no format 'iwp-recipe'"),
        (b'{"format": "iwp-bundle", "schema_version": 2}', "is not a recipe"),
        (b'{"format": "iwp-recipe", "schema_version": "\x1b"}', "is not JSON"),
        (b'{"format": "iwp-recipe", "schema_version": "\\u001b"}', "its schema_version is '\\x1b'"),
        (b'{"format": "iwp-recipe", "schema_version": 2}', "schema version 2, this version reads 1: upgrade"),
    ],
)
def test_what_is_no_recipe_is_one_line(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    assert message in refused(file)


def test_a_change_by_hand_is_refused(file: Path) -> None:
    file.write_text(file.read_text().replace('"layer": 2', '"layer": 1'))
    assert "changed by hand" in refused(file)
    assert "override single settings" in refused(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "a\x1b[31m", "model_type": "llava", "digest": "ab" * 32}}, "model.name is 'a\\x1b[31m'"),
        ({"model": {"name": "a", "model_type": "llava", "digest": "AB" * 32}}, "64 hexadecimal digits"),
        ({"model": {"name": "", "model_type": "llava", "digest": "ab" * 32}}, "not empty"),
        ({"settings": {"stages": []}}, "exactly one stage"),
        ({"settings": {}}, "exactly one stage"),
        ({"settings": {**RECIPE_JSON.to_dict(make_recipe())["settings"], "future": 1}}, "['future']"),
        ({"candidates": []}, "0 candidates are chosen"),
        ({"candidates": RECIPE_JSON.to_dict(make_recipe())["candidates"][:1] * 2}, "2 candidates are chosen"),
        ({"verdict": ["fine\x07"]}, "verdict[0]"),
        ({"tools": {"a\x07": "1"}}, "a name in tools"),
        ({"more": 1}, "more is unknown"),
    ],
)
def test_a_wrong_value_is_named(file: Path, changes: dict[str, Any], message: str) -> None:
    file.write_text(json.dumps(sealed(**changes)))
    assert message in refused(file)


def test_paths_that_are_no_file(file: Path, tmp_path: Path) -> None:
    assert "is a folder, not a recipe" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "none.json")
    assert "cannot read the recipe" in refused(file / "below")
    assert "too long" in refused(tmp_path / ("a" * 300))
    os.mkfifo(tmp_path / "pipe")
    assert "not a plain file" in refused(tmp_path / "pipe")
    assert "not a plain file" in refused("/dev/zero")
    for name in ("a\x1b[31m.json", "a\nb.json", os.fsdecode(b"a\xff.json"), "a\0b"):
        assert "cannot be printed" in refused(tmp_path / name)


def test_a_file_is_replaced_by_force_alone(file: Path, tmp_path: Path) -> None:
    other = make_recipe(name="other")
    with pytest.raises(OutputError, match="already exists") as caught:
        write_recipe(other, file)
    assert caught.value.options == ("output", "force")
    assert read_recipe(file) == make_recipe()
    assert read_recipe(write_recipe(other, file, force=True)) == other
    assert read_recipe(write_recipe(other, tmp_path / "new" / "recipe.json")) == other
    with pytest.raises(OutputError, match="it is a folder"):
        write_recipe(other, tmp_path, force=True)


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    candidate = make_recipe().candidates[0]
    for broken in (
        replace(make_recipe(), model=RecipeModel("a\n", "llava", "ab" * 32)),
        replace(make_recipe(), candidates=(replace(candidate, kl=float("nan")),)),
        replace(make_recipe(), candidates=(replace(candidate, chosen=False),)),
    ):
        with pytest.raises(OutputError, match="Cannot write"):
            write_recipe(broken, tmp_path / "broken.json")
    assert not list(tmp_path.iterdir())


def test_a_source_of_before_the_data_were_named_is_read_and_one_without_data_reads_the_same() -> None:
    source = PruningSource("recipe", "a.json", "ab" * 32, data="cd" * 32)
    written = to_json(source)
    assert written.pop("data") == "cd" * 32
    assert from_json(PruningSource, written, "source") == replace(source, data=None)
    assert to_json(replace(source, data=None)) == written


@pytest.mark.parametrize(
    ("source", "fits"),
    [
        (PruningSource(), True),
        (PruningSource("options", overridden=("layer",)), True),
        (PruningSource("recipe", "a.json", "ab" * 32, "my-llava", ("layer",)), True),
        (PruningSource("recipe", "a.json", "ab" * 32, data="cd" * 32), True),
        (PruningSource("recipe", "a.json", "ab" * 32, data="cd"), False),
        (PruningSource("recipe", "a.json"), False),
        (PruningSource("paper", "a.json", "ab" * 32), False),
        (PruningSource("paper", other_model="my-llava"), False),
        (PruningSource("shipped recipe", "a\x1b[31m", "ab" * 32), False),
    ],
)
def test_a_source_says_its_recipe(source: PruningSource, fits: bool) -> None:
    if fits:
        assert from_json(PruningSource, json.loads(json.dumps(to_json(source))), "source") == source
    else:
        with pytest.raises(Flaw, match="source"):
            from_json(PruningSource, json.loads(json.dumps(to_json(source))), "source")
