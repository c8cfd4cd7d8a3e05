"""Recipes: pruning settings that were chosen for one model from data, with the figures they were chosen by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from iwp_export.bundle.document import Document, read_file, write_file
from iwp_export.bundle.schema import LATER, Count, Number, Rule, above_zero
from iwp_export.errors import RecipeError
from iwp_export.pruning.settings import PruningSettings
from iwp_export.settings import Objective as Objective

SourceKind = Literal["paper", "recipe", "shipped recipe", "options"]
Role = Literal["candidate", "default", "control"]

Digest = Annotated[str, Rule(re.compile("[0-9a-f]{64}").fullmatch, "64 hexadecimal digits")]
Share = Annotated[float, Rule(lambda value: 0 <= value <= 1, "a number from 0 to 1")]
Name = Annotated[str, Rule(lambda value: value != "", "text that is not empty")]

SCHEMA_VERSION = 1
"""Of recipes alone: they outlive the bundles that are exported with them."""
SHOWN_DIGITS = 12
"""Of a digest, in a line for people."""


@dataclass(frozen=True)
class RecipeModel:
    """The model that a recipe is for: its name, its transformers model_type and its `Checkpoint.digest`."""

    name: Name
    model_type: Name
    digest: Digest

    def __str__(self) -> str:
        return f"{self.name} ({self.model_type}, digest {self.digest[:SHOWN_DIGITS]})"


@dataclass(frozen=True)
class RecipeData:
    """What settings were tried on.

    Attributes:
        name: of the file or the folder.
        digest: SHA-256 of all questions in it, in their order, see `questions.digest_of`.
        samples: how many of them were drawn.
        answers: whether each had a right answer to compare with.
    """

    name: Name
    digest: Digest
    samples: Count
    answers: bool


@dataclass(frozen=True)
class RecipeSearch:
    """How settings were searched.

    Attributes:
        budget: what was asked for, in words.
        keeps: the keep ratios that figures are means over, the first one's being the recipe's.
        objective: what the candidates were ranked by.
        seed: of the order of the samples.
        rungs: samples in each round of the search; the candidates that are left meet the next round's.
        runs: pairs of a candidate and a sample that were run.
        runs_of_all: pairs there would have been, had every candidate met the last round's samples.
    """

    budget: Name
    keeps: tuple[Annotated[float, above_zero(1)], ...]
    objective: Objective
    seed: Number
    rungs: tuple[Count, ...]
    runs: Count
    runs_of_all: Count


@dataclass(frozen=True)
class CandidateFigures:
    """What was measured of one setting.

    Attributes:
        settings: with the first of the search's keep ratios.
        role: `default` is the paper's, `control` ranks tokens without a look at what they mean.
        samples: how many it met.
        kl: divergence of the next token's distribution from the unpruned model's, nats per answer token; mean over
            samples and keep ratios.
        kl_error: standard error of `kl` over samples; 0 of a single sample.
        agreement: share of samples whose greedy answer is the unpruned model's.
        accuracy: share of right answers, where the data have answers.
        prefill_speedup: operations of the unpruned prefill over the pruned one's, at the first keep ratio.
        chosen: whether the recipe is of this one.
    """

    settings: PruningSettings
    role: Role
    samples: Count
    kl: float
    kl_error: Annotated[float, Rule(lambda value: value >= 0, "a number of 0 or more")]
    agreement: Share
    accuracy: Share | None
    prefill_speedup: Annotated[float, Rule(lambda value: value > 0, "a number above 0")]
    chosen: bool


@dataclass(frozen=True)
class Recipe:
    """Pruning settings and where they come from.

    Attributes:
        settings: what an export with this recipe uses.
        model: the model they were chosen for.
        data: what they were tried on.
        search: how they were found.
        verdict: what was found, in sentences for people.
        candidates: every setting that was tried; one is chosen, and its settings are the recipe's.
        tools: the versions that made it.
    """

    settings: PruningSettings
    model: RecipeModel
    data: RecipeData
    search: RecipeSearch
    verdict: tuple[str, ...]
    candidates: tuple[CandidateFigures, ...]
    tools: Mapping[str, str]

    def check(self) -> None:
        """Raise ValueError where parts contradict each other."""
        chosen = [candidate.settings for candidate in self.candidates if candidate.chosen]
        if chosen != [self.settings]:
            raise ValueError(f"{len(chosen)} candidates are chosen, must be one, with the recipe's settings")
        if not self.search.keeps:
            raise ValueError("search.keeps is empty")

    @property
    def digest(self) -> str:
        """SHA-256 of its content, as in its file."""
        return str(RECIPE_JSON.to_dict(self)["digest"])


@dataclass(frozen=True)
class PruningSource:
    """Where pruning settings come from.

    Attributes:
        kind: `paper`, the defaults; `recipe`, a recipe's file; `shipped recipe`, one that comes with the package;
            `options`, all of them were given by the caller.
        recipe: the recipe's file name.
        digest: SHA-256 of its content.
        other_model: the model that the recipe is for, where it is not the exported one and was taken all the same.
        overridden: names of single settings that were given in place of the source's.
        data: digest of the data that the recipe's settings were chosen on, see `RecipeData`.
    """

    kind: SourceKind = "paper"
    recipe: Name | None = None
    digest: Digest | None = None
    other_model: Name | None = None
    overridden: tuple[Name, ...] = ()
    data: Digest | None = field(default=None, metadata={LATER: True})

    def check(self) -> None:
        """Raise ValueError where parts contradict each other."""
        named = self.recipe is not None and self.digest is not None
        if named != self.kind.endswith("recipe") or (not named and self.other_model is not None):
            raise ValueError(f"{self.kind!r} does not go with recipe {self.recipe!r} and digest {self.digest!r}")

    def __str__(self) -> str:
        texts = {"paper": "the paper's", "options": "given in full"}
        text = texts.get(self.kind, f"{self.kind} {self.recipe}")
        text += f" of another model, {self.other_model}" if self.other_model else ""
        return text + (f", but for {', '.join(self.overridden)}" if self.overridden else "")


RECIPES = Path(__file__).parent.parent / "assets" / "recipes"
"""The recipes that ship with the package, NAME.json each."""


def unlike_source(settings: PruningSettings, source: PruningSource) -> list[str]:
    """What of settings is not as their source says, as `pruning.NAME: VALUE, not VALUE as SOURCE has`.

    Only the paper's settings and a recipe that ships with this version are at hand to compare with.
    """
    base: PruningSettings | None = PruningSettings() if source.kind == "paper" else None
    if source.kind == "shipped recipe" and (RECIPES / str(source.recipe)).is_file():
        recipe = read_recipe(RECIPES / str(source.recipe))
        base = recipe.settings if recipe.digest == source.digest else None
    found = () if base is None else vars(base).items()
    return [
        f"pruning.{name}: {getattr(settings, name)}, not {value} as {source} has"
        for name, value in found
        if name not in source.overridden and getattr(settings, name) != value
    ]


def read_recipe(path: Path | str) -> Recipe:
    """Read a recipe's file.

    Raises:
        RecipeError: it is missing or cannot be read, is no recipe, of a newer version, or was changed by hand.
    """
    return read_file(RECIPE_JSON, path)


def write_recipe(recipe: Recipe, path: Path | str, force: bool = False) -> Path:
    """Write a recipe's file, whole or not at all; see `write_file`."""
    return write_file(RECIPE_JSON, recipe, path, force)


RECIPE_JSON = Document(
    Recipe,
    "iwp-recipe",
    noun="recipe",
    foreign="is not a recipe: it",
    remedy="copy it again or calibrate again (an export can override single settings of a recipe)",
    command=lambda data, where: "calibrate again",
    version=SCHEMA_VERSION,
    error=RecipeError,
)
