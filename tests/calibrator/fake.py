"""Made-up scores in the place of a model's: searches, journals and verdicts need no torch to run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from iwp_export.pruning.settings import PruningSettings
from iwp_export.questions import Question
from iwp_export.scorer import Score, Scorer

Loss = Callable[[PruningSettings, int], float]
"""From a setting and a sample's number to its KL in nats."""


def questions(count: int, answer: str | None = "right") -> list[Question]:
    return [
        Question((Path(f"{number}.png"),), str(number), () if answer is None else (answer,)) for number in range(count)
    ]


class FakeScores(Scorer):
    """Scores by a rule; an answer changes, and is then wrong, from `limit` nats on.

    Args:
        loss: the rule.
        limit: nats.
        confidence, right: of the unpruned model.
        stop: the number of scores after which each call raises KeyboardInterrupt.
    """

    def __init__(
        self, loss: Loss, limit: float = 1.0, confidence: float = 0.9, right: bool = True, stop: int | None = None
    ) -> None:
        self._loss, self._limit, self._confidence, self._right = loss, limit, confidence, right
        self._stop = stop
        self.scored: Counter[tuple[int, PruningSettings]] = Counter()
        self.generated: Counter[tuple[int, PruningSettings]] = Counter()

    def prepare(self, question: Question) -> Any:
        right = None if question.answer is None else self._right
        return SimpleNamespace(question=question, confidence=self._confidence, right=right)

    def score(
        self, prepared: Any, settings: PruningSettings, with_answer: bool = False, *, blind: bool = False
    ) -> Score:
        if self._stop is not None and self.scored.total() >= self._stop:
            raise KeyboardInterrupt
        sample = int(prepared.question.prompt)
        self.scored[sample, settings] += 1
        kl = self._loss(settings, sample)
        score = Score(kl, kl < self._limit)
        return replace(score, right=self.is_right(prepared, settings, score.agrees)) if with_answer else score

    def is_right(self, prepared: Any, settings: PruningSettings, agrees: bool, blind: bool = False) -> bool | None:
        if not agrees and prepared.right is not None:
            self.generated[int(prepared.question.prompt), settings] += 1
        return None if prepared.right is None else agrees and self._right
