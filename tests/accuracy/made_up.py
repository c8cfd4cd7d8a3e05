"""Answers that no model gave, for tests without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from iwp_export.accuracy.figures import Accuracy
from iwp_export.accuracy.measure import measure_accuracy
from iwp_export.bundle.recipe import PruningSource
from iwp_export.models.common.family import Picture, View
from iwp_export.pruning.settings import PruningSettings
from iwp_export.questions import DataSet, Question
from iwp_export.runtime.result import Result, Timing

GRID = (3, 4)


class Parrot:
    """Stands for a pipeline: answers the k-th question with the k-th text of its keep ratio."""

    def __init__(self, texts: Mapping[float, Sequence[str]], keep: float = 0.3, finish: str = "stop") -> None:
        self._texts, self._finish = texts, finish
        self.manifest = SimpleNamespace(pruning=PruningSettings(keep=keep), pruning_source=PruningSource())

    def __call__(self, images: Any, prompt: str, *, keep: float, max_new_tokens: int) -> Result:
        tokens = np.arange(12).reshape(GRID)
        view = View(np.full((30, 40, 3), 200, np.uint8), tokens)
        kept = [list(range(max(1, round(keep * 12))))]
        text = self._texts[keep][int(prompt.split()[-1])]
        finish: Any = self._finish
        picture = Picture({}, 12, (view,))
        return Result(
            text=text,
            token_ids=[1],
            finish_reason=finish,
            timing=Timing(0, 0, 0, 0, 0),
            prompt_tokens=17,
            reused_tokens=0,
            note="",
            pictures=(picture,),
            visual_tokens=12,
            kept=kept,
            cache_bytes=1,
            cache_bytes_unpruned=2,
            cache_lengths=(18,),
        )


def questions(folder: Path, answers: Sequence[str | None], kinds: Sequence[str] = ()) -> DataSet:
    """Questions about one image; the k-th prompt ends in k."""
    image = folder / "a.png"
    if not image.exists():
        Image.new("RGB", (4, 4)).save(image)
    made = []
    for number, answer in enumerate(answers):
        kind = kinds[number % len(kinds)] if kinds else None
        made.append(Question((image,), f"what is {number}", () if answer is None else (answer,), kind))
    return DataSet("the data", tuple(made))


def measured(folder: Path, right: int, lost: int, gained: int, keep: float = 0.3, own: float = 0.3) -> Accuracy:
    """`right` answers of both, `lost` by pruning, `gained` by it."""
    whole = ["x"] * (right + lost) + ["y"] * gained
    pruned = ["x"] * right + ["y"] * lost + ["x"] * gained
    parrot: Any = Parrot({1.0: whole, keep: pruned}, keep=own)
    return measure_accuracy(parrot, questions(folder, ["x"] * len(whole)), [keep])
