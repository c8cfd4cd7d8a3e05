"""Other ways to choose visual tokens, to compare IWP with at the same budget and prompts: one file a paper."""

from __future__ import annotations

from collections.abc import Mapping

from calibration.studies.rivals import cdpruner, dart, divprune, fastv, pact, visionzip
from calibration.studies.rivals.controls import at_random, choose_grid
from calibration.studies.rivals.method import Method
from iwp_export.pruning.settings import PruningSettings

BEFORE = " before layer 0"
"""Ends the name of a method that runs where its paper runs it, in the place of the pruning layer."""


def methods(settings: PruningSettings, seed: int = 0) -> Mapping[str, Method]:
    """IWP and its rivals, by name.

    - `iwp`, and `iwp raw` with Eq. 10's kernels not divided by each head's sum;
    - `magnitude`: IWP without duplication;
    - `last attention`: the importance of that name, the attention of the last token in the pruning layer;
    - `fastv`, `dart`, `pact` (its pruning part): where their papers drop tokens, at a layer of the language model;
    - `divprune`, `cdpruner (relevance by word embeddings)`, `visionzip (dominant tokens alone)`: the tokens that
      their papers' rules choose before layer 0, dropped at the pruning layer as every other method's are;
    - the same names with ` before layer 0`: where their papers drop them. All layers read fewer tokens then, so
      that the same budget is cheaper than at a later layer. `visionzip` merges tokens and runs there alone;
    - `grid`: evenly spaced places; `random`: chance.

    Args:
        settings: IWP's.
        seed: of `random`.
    """
    by_words = "cdpruner (relevance by word embeddings)"
    return {
        "iwp": Method(settings),
        "iwp raw": Method(settings.with_changes(heads="raw")),
        "magnitude": Method(settings.with_changes(penalty=0.0, select="mmr")),
        "last attention": Method(settings.with_changes(importance="last_attention")),
        "fastv": Method(settings, fastv.choose, needs=("layer below",)),
        "dart": Method(settings, dart.choose, needs=("layer below",)),
        "pact": Method(settings, pact.choose),
        "divprune": Method(settings, divprune.choose),
        "divprune" + BEFORE: Method(settings, condense=divprune.condense),
        by_words: Method(settings, cdpruner.choose),
        by_words + BEFORE: Method(settings, condense=cdpruner.condense),
        "visionzip (dominant tokens alone)": Method(settings, visionzip.choose, needs=("class token",)),
        "visionzip" + BEFORE: Method(settings, condense=visionzip.condense, needs=("class token",)),
        "grid": Method(settings, choose_grid),
        "random": Method(settings, at_random(seed)),
    }
