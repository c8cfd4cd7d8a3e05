"""Which pruning settings an export takes, and where they come from: the caller, a recipe, or the paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iwp_export.bundle.outputs import plain_name
from iwp_export.bundle.recipe import RECIPES, PruningSource, Recipe, RecipeModel, read_recipe
from iwp_export.errors import RecipeError, SettingsError
from iwp_export.exporter.checkpoint import Checkpoint
from iwp_export.models import ALIASES
from iwp_export.pruning.settings import PruningSettings, names_of_settings

PAPER = "paper"
"""In place of a recipe's file: the paper's settings, even if a recipe ships for the model."""


@dataclass(frozen=True)
class Choice:
    """Pruning settings and where they come from.

    Attributes:
        settings: the settings.
        source: where they come from.
        unconfirmed: the model that the recipe is for, while the weights to compare it with are not on this machine.
        any_model: take a recipe of another model.
    """

    settings: PruningSettings
    source: PruningSource
    unconfirmed: RecipeModel | None = None
    any_model: bool = False

    def confirmed(self, checkpoint: Checkpoint) -> PruningSource:
        """The source, once the weights are on this machine.

        Raises:
            RecipeError: the recipe is of another model.
            CheckpointError: the weights cannot be read.
        """
        if self.unconfirmed is None or self.unconfirmed.digest == checkpoint.digest():
            return self.source
        if not self.any_model:
            raise _of_another_model(self.source, self.unconfirmed, checkpoint)
        return replace(self.source, other_model=self.unconfirmed.name)


def check_request(pruning: PruningSettings | Mapping[str, Any] | None, recipe: Path | str | None) -> None:
    """Refuse what `resolve` would refuse whatever the model is.

    Raises:
        RecipeError, SettingsError: see `resolve`.
    """
    if not isinstance(pruning, PruningSettings):
        _chosen(PruningSettings(), pruning, PruningSource())
    elif recipe not in (None, PAPER):
        raise SettingsError("all settings are given, and a recipe too; leave one out", options=("recipe",))
    if recipe not in (None, PAPER):
        read_recipe(recipe)


def resolve(
    checkpoint: Checkpoint,
    pruning: PruningSettings | Mapping[str, Any] | None = None,
    recipe: Path | str | None = None,
    any_model: bool = False,
) -> Choice:
    """Choose the settings of an export.

    Args:
        checkpoint: the model.
        pruning: all settings, and then no recipe; or single ones by name, which replace those of the recipe.
        recipe: a recipe's file; or `paper`. If left out, the recipe that ships for the model, else the paper's.
        any_model: take a recipe of another model.

    Raises:
        RecipeError: the recipe cannot be read, or is of another model.
        SettingsError: a setting is unknown or out of range, or all settings and a recipe are given.
        CheckpointError: the weights cannot be read.
    """
    check_request(pruning, recipe)
    if isinstance(pruning, PruningSettings):
        return Choice(pruning, PruningSource("options"))
    found = _find(checkpoint, recipe)
    if found is None:
        return _chosen(PruningSettings(), pruning, PruningSource())
    source, content = found
    choice = replace(_chosen(content.settings, pruning, source), any_model=any_model, unconfirmed=content.model)
    if checkpoint.is_local:
        return replace(choice, source=choice.confirmed(checkpoint), unconfirmed=None)
    if content.model.model_type != checkpoint.model_type and not any_model:
        raise _of_another_model(source, content.model, checkpoint)
    return choice


def _chosen(base: PruningSettings, changes: Mapping[str, Any] | None, source: PruningSource) -> Choice:
    """Settings with single ones changed, and their source with the names of those that differ."""
    names = names_of_settings()
    if unknown := sorted(set(changes or ()) - set(names)):
        raise SettingsError(f"there is no pruning setting {unknown[0]!r}; there are: {', '.join(names)}")
    settings = base.with_changes(**(changes or {}))
    overridden = tuple(name for name in names if getattr(settings, name) != getattr(base, name))
    return Choice(settings, replace(source, overridden=overridden))


def _find(checkpoint: Checkpoint, recipe: Path | str | None) -> tuple[PruningSource, Recipe] | None:
    """The recipe that is asked for, or else the one that ships for the model."""
    if recipe == PAPER:
        return None
    if recipe is not None:
        content = read_recipe(recipe)
        name = plain_name(Path(Path(recipe).name), RecipeError)
        return PruningSource("recipe", name, content.digest, data=content.data.digest), content
    for file in sorted(RECIPES.glob("*.json")):
        content = read_recipe(file)
        model = content.model
        if checkpoint.is_local:
            ships = model.digest == checkpoint.digest()
        else:  # no weights to take a digest of
            ships = ALIASES.get(model.name, model.name) == checkpoint.source
        if ships and model.model_type == checkpoint.model_type:
            return PruningSource("shipped recipe", file.name, content.digest, data=content.data.digest), content
    return None


def _of_another_model(source: PruningSource, model: RecipeModel, checkpoint: Checkpoint) -> RecipeError:
    mine = f"{checkpoint.name} ({checkpoint.model_type})"
    if checkpoint.is_local:
        mine = str(RecipeModel(checkpoint.name, checkpoint.model_type, checkpoint.digest()))
    return RecipeError(
        f"{source.kind} {source.recipe} is for {model}, not for {mine}: "
        "calibrate on this model, or take it all the same",
        options=("force",),
    )
