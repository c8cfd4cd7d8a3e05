"""Scores in words and as a table for the terminal."""

from __future__ import annotations

from iwp_export.accuracy.figures import Accuracy, AtKeep
from iwp_export.tables import table
from iwp_export.view.figures import percent, spread

CUT = 0.05
"""Share of answers that were cut off beyond which figures are doubtful."""


def describe(accuracy: Accuracy) -> str:
    """The sentences, then a table with a row for each keep ratio."""
    return "\n".join([*sentences(accuracy), "", figures(accuracy)])


def figures(accuracy: Accuracy) -> str:
    """The table alone: a row for each keep ratio, a column for each kind of question."""
    return table(keep_rows(accuracy))


def sentences(accuracy: Accuracy) -> list[str]:
    """What was found at the ratios that matter, then what speaks against relying on it."""
    return [*verdict(accuracy), *warnings(accuracy)]


def verdict(accuracy: Accuracy) -> list[str]:
    """What was found at the ratios that matter; what makes it doubtful is in `warnings`."""
    return [_found(accuracy, found) for found in accuracy.shipped]


def _found(accuracy: Accuracy, found: AtKeep) -> str:
    asked = f"{accuracy.questions:,} questions of {accuracy.data}"
    if found.keep == 1:
        score = "" if found.score is None else f": {accuracy.title} {spread(found.score)} on {asked}"
        return f"Keep 1 prunes nothing{score}."
    agreement = f"{spread(found.agreement)} of its answers are the unpruned model's"
    if found.score is None or accuracy.unpruned.score is None:
        return f"Keep {found.keep:g}, on {asked} without answers: {agreement}."
    kept = "" if found.relative is None else f"{spread(found.relative)} of the unpruned score, "
    scores = f"{accuracy.title} {percent(found.score.mean)} after {percent(accuracy.unpruned.score.mean)}"
    return f"Keep {found.keep:g} has {kept}{scores} on {asked}; {agreement}."


def warnings(accuracy: Accuracy) -> list[str]:
    """What makes the figures doubtful."""
    found = []
    if accuracy.unpruned.score is not None and accuracy.unpruned.score.mean == 0:
        found.append(
            f"The unpruned model scores 0 by the rule {accuracy.rule}: look at its answers, for another rule may fit."
        )
    cut = max(each.cut for each in accuracy.at)
    if cut > CUT:
        found.append(f"{percent(cut)} of the answers were cut off after {accuracy.max_new_tokens} tokens: allow more.")
    return found


def keep_rows(accuracy: Accuracy) -> list[list[str]]:
    """The table's cells, its head first."""
    kinds = [kind.name for kind in accuracy.unpruned.kinds]
    score = [accuracy.title, "of keep 1"] if accuracy.rule else []
    return [["keep", "visual tokens", *kinds[:-1], *score, "same answer"], *map(_row, accuracy.at)]


def _row(found: AtKeep) -> list[str]:
    by_kind = [percent((kind.score or kind.agreement).mean) for kind in found.kinds[:-1]]
    scores = [] if found.score is None else [spread(found.score), spread(found.relative) if found.relative else "-"]
    return [f"{found.keep:.2f}", f"{found.visual_tokens_kept:.0f}", *by_kind, *scores, percent(found.agreement.mean)]
