"""What was measured of settings on samples: run where it is missing, and kept in a file for a second start."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from iwp_export.bundle.recipe import Objective
from iwp_export.bundle.staging import try_lock
from iwp_export.errors import OutputError, os_reason
from iwp_export.progress import progress
from iwp_export.pruning.settings import PruningSettings
from iwp_export.questions import Question
from iwp_export.scorer import Prepared, Score


class Scores(Protocol):
    """What `score.Scorer` offers."""

    def prepare(self, question: Question) -> Prepared: ...

    def score(self, prepared: Prepared, settings: PruningSettings, with_answer: bool = False) -> Score: ...

    def is_right(self, prepared: Prepared, settings: PruningSettings, agrees: bool) -> bool | None: ...


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
        self.samples = samples
        self._scorer, self._keeps = scorer, tuple(keeps)
        self._met: dict[PruningSettings, int] = {}
        self._scores: dict[tuple[int, PruningSettings], Score] = {}
        self._unpruned: dict[int, Unpruned] = {}
        self._journal = None if journal is None else Journal(journal, header or {})
        if self._journal is not None:
            self._scores, self._unpruned = self._journal.read()

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
                if todo:
                    self._run_sample(index, todo, with_answer, advance)
        for one in each:
            self._met[one] = max(count, self._met.get(one, 0))

    def probe(self, settings: Sequence[PruningSettings]) -> tuple[float, float]:
        """Seconds of a sample's unpruned pass, and of one setting on it; what they yield is kept for `run`."""
        start = time.perf_counter()
        prepared = self._scorer.prepare(self.samples[0])
        middle = time.perf_counter()
        for one in settings:
            score = self._scorer.score(prepared, one)
            if (0, one) not in self._scores:
                self._keep(0, one, score, prepared)
        return middle - start, (time.perf_counter() - middle) / len(settings)

    def losses(self, settings: PruningSettings, count: int, objective: Objective) -> npt.NDArray[np.float64]:
        """What a setting loses on each of the first `count` samples, mean over the keep ratios, [count].

        `kl` in nats; `agreement` and `accuracy` as 0 or 1, 1 where the answer changed or is wrong.
        """
        rows = [[self._loss(index, one, objective) for index in range(count)] for one in self._at_keeps(settings)]
        return np.mean(rows, axis=0)

    def met(self, settings: PruningSettings) -> int:
        """How many samples, from the first on, a setting has met in `run`.

        Scores of an earlier start that `run` was not asked for are not told, so that a calibration that went on from
        a journal reports what one without would.
        """
        return min(self._met.get(one, 0) for one in self._at_keeps(settings))

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
            score = self._scores.get((index, one))
            if score is None:
                score = self._scorer.score(prepared, one, with_answer)
            else:  # what it lacks is whether its answer is right
                score = replace(score, right=self._scorer.is_right(prepared, one, score.agrees))
            self._keep(index, one, score, prepared)
            advance(1)

    def _keep(self, index: int, settings: PruningSettings, score: Score, prepared: Prepared) -> None:
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
    """A file of scores, a JSON object a line, the first one being what they depend on.

    It is locked while it is open. A line that cannot be read is passed over, and what it held is measured again.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self._path, self._header = path, json.dumps(dict(header), sort_keys=True).encode()
        self._file: BinaryIO | None = None

    def read(self) -> tuple[dict[tuple[int, PruningSettings], Score], dict[int, Unpruned]]:
        """Scores of earlier starts with the same header, and open the file for more.

        Raises:
            OutputError: the file cannot be written, or another calibration is writing it.
        """
        scores: dict[tuple[int, PruningSettings], Score] = {}
        unpruned: dict[int, Unpruned] = {}
        try:
            self._file = self._open()
            content = self._file.read()
            header, *lines = content[: content.rfind(b"\n") + 1].split(b"\n")  # a torn line has no end
            if header == self._header:
                self._file.truncate(content.rfind(b"\n") + 1)
            else:
                lines = []
                self._file.truncate(0)
                self._write(self._header)
        except BlockingIOError as error:
            raise OutputError(
                f"another calibration is writing {self._path}; wait for it, or choose another output",
                options=("output",),
            ) from error
        except OSError as error:
            raise OutputError(f"cannot keep scores in {self._path}: {os_reason(error)}", options=("output",)) from error
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                settings = PruningSettings.from_dict(entry["settings"])
                score, whole = Score(**entry["score"]), Unpruned(**entry["unpruned"])
                scores[entry["sample"], settings], unpruned[entry["sample"]] = score, whole
        return scores, unpruned

    def add(self, sample: int, settings: PruningSettings, score: Score, unpruned: Unpruned) -> None:
        """Write one score, at once: the program may be stopped at any time."""
        entry = {
            "sample": sample,
            "settings": settings.to_dict(),
            "score": asdict(score),
            "unpruned": asdict(unpruned),
        }
        self._write(json.dumps(entry).encode())

    def close(self, finished: bool) -> None:
        """Close the file, and remove it if it has served its purpose: first, while no other can take its lock."""
        if finished:
            self._path.unlink(missing_ok=True)
        if self._file is not None:
            self._file.close()

    def _open(self) -> BinaryIO:
        """The file, locked and at its start; made if it is not there."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = self._path.open("a+b")
            try:
                _lock(file.fileno())
                if self._path.exists() and os.path.samestat(self._path.stat(), os.fstat(file.fileno())):
                    file.seek(0)
                    return file
            except BaseException:
                file.close()
                raise
            file.close()  # its writer finished and removed it before the lock was held

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        self._file.write(line + b"\n")
        self._file.flush()


def _lock(descriptor: int) -> None:
    """See `try_lock`; a file system without locks is none of a calibration's business."""
    try:
        try_lock(descriptor)
    except BlockingIOError:
        raise
    except OSError:
        return
