"""What was measured of settings on samples: run where it is missing, and kept in a file for a second start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import numpy.typing as npt

from iwp_export.bundle.recipe import Objective
from iwp_export.calibrator.journal import Entry, Journal
from iwp_export.progress import progress
from iwp_export.pruning.settings import PruningSettings
from iwp_export.questions import Question
from iwp_export.scorer import Prepared, Score, Scorer


@dataclass(frozen=True)
class Unpruned:
    """The unpruned model on one sample: mean probability of its tokens, and whether it is right, if that is known."""

    confidence: float
    right: bool | None


class Measurements:
    """Scores by sample and setting; each pair is run once, also over several starts of the program.

    Args:
        scorer: runs what is missing.
        samples: the questions, in the order in which they are met.
        keeps: a setting with the first of these keep ratios is run at all of them.
        journal: takes each score as it is made, and has those of earlier starts; None keeps none.

    Raises:
        OutputError: the journal cannot be written.
    """

    def __init__(
        self,
        scorer: Scorer,
        samples: Sequence[Question],
        keeps: Sequence[float] = (),
        journal: Journal | None = None,
    ) -> None:
        self.samples = samples
        self._scorer, self._keeps = scorer, tuple(keeps)
        self._met: dict[PruningSettings, int] = {}
        self._scores: dict[tuple[int, PruningSettings], Score] = {}
        self._unpruned: dict[int, Unpruned] = {}
        self._journal = journal
        for each in () if journal is None else journal.entries:
            self._scores[each.sample, each.settings] = Score(each.kl, each.agrees, each.right)
            self._unpruned[each.sample] = Unpruned(each.confidence, each.unpruned_right)

    @property
    def answers(self) -> bool:
        """Whether every sample has a right answer."""
        return all(sample.answer is not None for sample in self.samples)

    @property
    def runs(self) -> int:
        """Pairs of a sample and a setting that `run` was asked for, whether they ran now or in an earlier start."""
        return sum(self._met.values())

    def run(self, title: str, settings: Iterable[PruningSettings], count: int, with_answer: bool = False) -> None:
        """See that every setting has met the first `count` samples.

        Args:
            title: what a progress bar says.
            settings: the settings.
            count: how many samples.
            with_answer: also whether answers are right, where the data have answers.
        """
        each = list(dict.fromkeys(one for setting in settings for one in self._at_keeps(setting)))
        missing = {index: [one for one in each if self._is_missing(index, one, with_answer)] for index in range(count)}
        with progress(title, sum(map(len, missing.values())), unit="runs") as advance:
            for index, todo in missing.items():
                prepared = self._scorer.prepare(self.samples[index]) if todo else None
                for one in todo:
                    assert prepared is not None
                    score = self._scores.get((index, one))
                    if score is None:
                        score = self._scorer.score(prepared, one, with_answer)
                    else:  # what it lacks is whether its answer is right
                        score = replace(score, right=self._scorer.is_right(prepared, one, score.agrees))
                    self._keep(index, one, score, prepared)
                    advance(1)
        for one in each:
            self._met[one] = max(count, self._met.get(one, 0))

    def losses(self, settings: PruningSettings, samples: range, objective: Objective) -> npt.NDArray[np.float64]:
        """What a setting loses on each of the samples, by their numbers, mean over the keep ratios.

        `kl` in nats; `agreement` and `accuracy` as 0 or 1, 1 where the answer changed or is wrong.
        """
        rows = [[self._loss(index, one, objective) for index in samples] for one in self._at_keeps(settings)]
        return np.mean(rows, axis=0)

    def met(self, settings: PruningSettings) -> int:
        """How many samples, from the first on, a setting has met in `run`.

        Scores of an earlier start that `run` was not asked for are not told, so that a calibration that went on from
        a journal reports what one without would.
        """
        return min(self._met.get(one, 0) for one in self._at_keeps(settings))

    def has_answers(self, settings: PruningSettings, count: int) -> bool:
        """Whether it is known of each of the first `count` samples whether a setting's answer is right."""
        known = [self._scores[index, one].right for index in range(count) for one in self._at_keeps(settings)]
        return None not in known

    def unpruned(self, count: int) -> list[Unpruned]:
        """The unpruned model on the first `count` samples."""
        return [self._unpruned[index] for index in range(count)]

    def close(self, finished: bool) -> None:
        """Close the journal; see `Journal.close`."""
        if self._journal is not None:
            self._journal.close(finished)

    def _keep(self, index: int, settings: PruningSettings, score: Score, prepared: Prepared) -> None:
        self._scores[index, settings] = score
        if index not in self._unpruned:
            self._unpruned[index] = Unpruned(prepared.confidence, prepared.right)
        if self._journal is not None:
            confidence, right = astuple(self._unpruned[index])
            self._journal.add(Entry(index, settings, score.kl, score.agrees, score.right, confidence, right))

    def _is_missing(self, index: int, settings: PruningSettings, with_answer: bool) -> bool:
        score = self._scores.get((index, settings))
        if score is None:
            return True
        return with_answer and score.right is None and self.samples[index].answer is not None

    def _loss(self, index: int, settings: PruningSettings, objective: Objective) -> float:
        score = self._scores[index, settings]
        return score.kl if objective == "kl" else float(not (score.agrees if objective == "agreement" else score.right))

    def _at_keeps(self, settings: PruningSettings) -> list[PruningSettings]:
        if settings.keep not in self._keeps[:1]:
            return [settings]
        return [replace(settings, keep=keep) for keep in self._keeps]
