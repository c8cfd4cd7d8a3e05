"""A recipe as a calibration would write it, for tests."""

from __future__ import annotations

from iwp_export.bundle.recipe import CandidateFigures, Recipe, RecipeData, RecipeModel, RecipeSearch
from iwp_export.pruning.settings import PruningSettings

SETTINGS = PruningSettings(layer=2, keep=0.25, chunk=1, growth=1, query="last")


def make_recipe(
    settings: PruningSettings = SETTINGS, name: str = "tiny-llava", model_type: str = "llava", digest: str = "ab" * 32
) -> Recipe:
    """A recipe whose figures are made up."""
    chosen = CandidateFigures(settings, "candidate", 96, 0.02, 0.004, 0.96, 0.95, 1.6, chosen=True)
    default = CandidateFigures(PruningSettings(keep=0.25), "default", 8, 1.3, 0.2, 0.4, None, 1.4, chosen=False)
    return Recipe(
        settings=settings,
        model=RecipeModel(name, model_type, digest),
        data=RecipeData("digits", "cd" * 32, 96, True),
        search=RecipeSearch("keep 0.25", (0.25,), "kl", 0, (8, 24, 96), 300, 1200),
        verdict=("The answers are kept.", "Random does worse."),
        candidates=(chosen, default),
        tools={"iwp-export": "0.2.0"},
    )
