"""What was measured of settings on samples: run where it is missing, and kept in a file for a second start."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import numpy.typing as npt

from iwp_export.bundle.recipe import Objective
from iwp_export.calibrate.score import Prepared, Score
from iwp_export.errors import OutputError, os_reason
from iwp_export.progress import progress
from iwp_export.pruning.settings import PruningSettings
from iwp_export.validate.questions import Question


class Scores(Protocol):
    """What `score.Scorer` offers."""

    def prepare(self, question: Question) -> Prepared: ...

    def score(self, prepared: Prepared, settings: PruningSettings, with_answer: bool = False) -> Score: ...


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
        journal: a file that takes each score as it is made; None keeps none.
        header: what scores depend on beside sample and setting; scores of another header are forgotten.
    """

    def __init__(
        self,
        scorer: Scores,
        samples: Sequence[Question],
        keeps: Sequence[float] = (),
        journal: Path | None = None,
        header: Mapping[str, Any] | None = None,
    ) -> None:
        self.samples, self.runs, self.reused = samples, 0, 0
        self._scorer, self._keeps = scorer, tuple(keeps)
        self._scores: dict[tuple[int, PruningSettings], Score] = {}
        self._unpruned: dict[int, Unpruned] = {}
        self._journal = None if journal is None else Journal(journal, header or {})
        if self._journal is not None:
            self._scores, self._unpruned = self._journal.read()
            self.reused = len(self._scores)

    def run(self, title: str, settings: Iterable[PruningSettings], count: int, with_answer: bool = False) -> None:
        """See that every setting has met the first `count` samples.

        Args:
            title: what a progress bar says.
            settings: the settings.
            count: how many samples.
            with_answer: also whether answers are right, where the data have answers.
        """
        each = [one for setting in dict.fromkeys(settings) for one in self._at_keeps(setting)]
        missing = {index: [one for one in each if self._is_missing(index, one, with_answer)] for index in range(count)}
        with progress(title, sum(map(len, missing.values())), unit="runs") as advance:
            for index, todo in missing.items():
                if todo:
                    self._run_sample(index, todo, with_answer, advance)

    def probe(self, settings: Sequence[PruningSettings]) -> tuple[float, float]:
        """Seconds of a sample's unpruned pass, and of one setting on it; their scores count as measured."""
        start = time.perf_counter()
        prepared = self._scorer.prepare(self.samples[0])
        middle = time.perf_counter()
        for one in settings:
            self._keep(0, one, self._scorer.score(prepared, one), prepared)
        return middle - start, (time.perf_counter() - middle) / len(settings)

    def losses(self, settings: PruningSettings, count: int, objective: Objective) -> npt.NDArray[np.float64]:
        """What a setting loses on each of the first `count` samples, mean over the keep ratios, [count].

        `kl` in nats; `agreement` and `accuracy` as 0 or 1, 1 where the answer changed or is wrong.
        """
        rows = [[self._loss(index, one, objective) for index in range(count)] for one in self._at_keeps(settings)]
        return np.mean(rows, axis=0)

    def met(self, settings: PruningSettings) -> int:
        """How many samples a setting has met, from the first on."""
        count = 0
        while count < len(self.samples) and all((count, one) in self._scores for one in self._at_keeps(settings)):
            count += 1
        return count

    def has_answers(self, settings: PruningSettings, count: int) -> bool:
        """Whether it is known of each of the first `count` samples whether a setting's answer is right."""
        return all(
            self._scores[index, one].right is not None for index in range(count) for one in self._at_keeps(settings)
        )

    def unpruned(self, count: int) -> list[Unpruned]:
        """The unpruned model on the first `count` samples that were run."""
        return [self._unpruned[index] for index in range(count) if index in self._unpruned]

    def close(self, finished: bool) -> None:
        """Close the journal; a finished one is removed."""
        if self._journal is not None:
            self._journal.close(finished)

    def _run_sample(
        self, index: int, todo: Sequence[PruningSettings], with_answer: bool, advance: Callable[[float], None]
    ) -> None:
        prepared = self._scorer.prepare(self.samples[index])
        for one in todo:
            self._keep(index, one, self._scorer.score(prepared, one, with_answer), prepared)
            advance(1)

    def _keep(self, index: int, settings: PruningSettings, score: Score, prepared: Prepared) -> None:
        self.runs += 1
        self._scores[index, settings] = score
        if index not in self._unpruned:
            self._unpruned[index] = Unpruned(prepared.confidence, prepared.right)
        if self._journal is not None:
            self._journal.add(index, settings, score, self._unpruned[index])

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


class Journal:
    """A file of scores, a JSON object a line, the first one being what they depend on."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self._path, self._header = path, dict(header)
        self._file: TextIO | None = None

    def read(self) -> tuple[dict[tuple[int, PruningSettings], Score], dict[int, Unpruned]]:
        """Scores of earlier starts with the same header, and open the file for more.

        Raises:
            OutputError: the file cannot be written.
        """
        scores: dict[tuple[int, PruningSettings], Score] = {}
        unpruned: dict[int, Unpruned] = {}
        lines = []
        try:
            if self._path.exists():
                lines = self._path.read_text(encoding="utf-8").splitlines()
            if not lines or _loaded(lines[0]) != self._header:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.write_text(json.dumps(self._header) + "\n", encoding="utf-8")
                lines = []
            elif not self._path.read_bytes().endswith(b"\n"):  # it was stopped while it wrote a line
                self._path.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
            self._file = self._path.open("a", encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = os_reason(error) if isinstance(error, OSError) else "it is not UTF-8"
            raise OutputError(f"cannot keep scores in {self._path}: {reason}", options=("output",)) from error
        for line in lines[1:]:
            entry = _loaded(line)
            if isinstance(entry, dict):
                settings = PruningSettings.from_dict(entry["settings"])
                scores[entry["sample"], settings] = Score(**entry["score"])
                unpruned[entry["sample"]] = Unpruned(**entry["unpruned"])
        return scores, unpruned

    def add(self, sample: int, settings: PruningSettings, score: Score, unpruned: Unpruned) -> None:
        """Write one score, at once: the program may be stopped at any time."""
        assert self._file is not None
        entry = {
            "sample": sample,
            "settings": settings.to_dict(),
            "score": asdict(score),
            "unpruned": asdict(unpruned),
        }
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def close(self, finished: bool) -> None:
        """Close the file, and remove it if it has served its purpose."""
        if self._file is not None:
            self._file.close()
        if finished:
            self._path.unlink(missing_ok=True)


def _loaded(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
