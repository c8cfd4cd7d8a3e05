"""What pruning costs, as plain figures. Shares are from 0 to 1; nothing here is in per cent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from iwp_export.view.figures import Interval

ALL = "all"
"""The kind that holds every question."""
JPEG = "/9j/"
"""How a JPEG file begins in base64."""
MOST_CELLS = 1000
"""Of a view on either side; a picture of more is none that a model saw."""


@dataclass(frozen=True)
class Kind:
    """Figures of one kind of question at one keep ratio.

    Attributes:
        name: the kind; `ALL` for every question.
        questions: how many there are.
        score: share, by the rule; None without answers.
        agreement: share of answers that are the unpruned model's.
    """

    name: str
    questions: int
    score: Interval | None
    agreement: Interval


@dataclass(frozen=True)
class AtKeep:
    """What was measured at one keep ratio. Intervals are of 95 %.

    Score, change and relative are None without answers; change and relative are None at keep 1 too, which would be
    compared with itself.

    Attributes:
        keep: the ratio.
        visual_tokens_kept: mean of a question.
        cut: share of answers that `max_new_tokens` cut off.
        score: share, by the rule.
        change: score less that of keep 1, on the same questions.
        relative: score divided by that of keep 1; None where that is 0.
        agreement: share of answers that are the unpruned model's to the letter.
        kinds: by kind of question, all of them last.
        more: further figures of the rule, by name, as shares.
        scores: share of each question, in order; empty without answers.
        same: of each question, whether its answer is the unpruned model's.
    """

    keep: float
    visual_tokens_kept: float
    cut: float
    score: Interval | None
    change: Interval | None
    relative: Interval | None
    agreement: Interval
    kinds: tuple[Kind, ...]
    more: Mapping[str, float]
    scores: tuple[float, ...]
    same: tuple[bool, ...]


@dataclass(frozen=True)
class KeptView:
    """A rectangle of an image as the model saw it, and the cells of which the visual tokens stayed.

    Attributes:
        jpeg: the pixels, reduced, as a JPEG file in base64.
        rows, columns: cells.
        kept: numbers of the cells that stayed, counted along the rows from 0.
    """

    jpeg: str
    rows: int
    columns: int
    kept: tuple[int, ...]

    def check(self) -> None:
        """Raises ValueError where a file's fields contradict each other."""
        cells = self.rows * self.columns
        if not (0 < self.rows <= MOST_CELLS and 0 < self.columns <= MOST_CELLS):
            raise ValueError(f"it has {self.rows} x {self.columns} cells")
        if not all(0 <= cell < cells for cell in self.kept):
            raise ValueError(f"a cell that stayed is none of {cells}")
        if not self.jpeg.startswith(JPEG):
            raise ValueError("its image is no JPEG")


@dataclass(frozen=True)
class Example:
    """A question as it was answered with and without pruning. Texts are in one line.

    Attributes:
        number: of the question in its data, from 1.
        images: names of the files.
        prompt: the question.
        right: the right answers, each once; empty without answers.
        unpruned: the answer at keep 1.
        pruned: the answer at `keep`.
        keep: the ratio.
        views: what the model saw and what of it stayed.
    """

    number: int
    images: tuple[str, ...]
    prompt: str
    right: tuple[str, ...]
    unpruned: str
    pruned: str
    keep: float
    views: tuple[KeptView, ...]


@dataclass(frozen=True)
class Accuracy:
    """An artefact's scores on a set of questions.

    Attributes:
        data: name of the questions.
        digest: SHA-256 of prompts, answers and images, see `questions.digest_of`.
        questions: how many were asked.
        rule: by which answers are scored, a name of `scoring.RULES`; empty without answers.
        title: what the rule's figure is called.
        max_new_tokens: length of an answer at most.
        own_keep: the ratio with which the artefact was exported.
        visual_tokens: mean of a question before pruning.
        yes: of each question whether the right answer is yes, for the rule `yesno`; else empty.
        at: by keep ratio, from 1 downward.
        examples: a few questions, those of which pruning changed the answer first.
    """

    data: str
    digest: str
    questions: int
    rule: str
    title: str
    max_new_tokens: int
    own_keep: float
    visual_tokens: float
    yes: tuple[bool, ...]
    at: tuple[AtKeep, ...]
    examples: tuple[Example, ...] = ()

    def check(self) -> None:
        """Raises ValueError where a file's fields contradict each other."""
        if not self.at or self.at[0].keep != 1 or any(not 0 < each.keep <= 1 for each in self.at):
            raise ValueError("it has to begin with keep 1")
        kinds = {tuple(kind.name for kind in each.kinds) for each in self.at}
        if len(kinds) != 1 or () in kinds:
            raise ValueError("its kinds of questions are not those of every keep ratio")
        lengths = {len(self.yes), *(len(each.scores) for each in self.at)} - {0}
        if not lengths <= {self.questions} or any(len(each.same) != self.questions for each in self.at):
            raise ValueError(f"its scores are not of {self.questions} questions")

    @property
    def unpruned(self) -> AtKeep:
        """What was measured at keep 1."""
        return self.at[0]

    @property
    def pruned(self) -> tuple[AtKeep, ...]:
        """What was measured below keep 1."""
        return self.at[1:]

    @property
    def shipped(self) -> tuple[AtKeep, ...]:
        """What gates are about: the artefact's own ratio if it was measured, else all below 1, or 1 alone."""
        own = tuple(each for each in self.at if each.keep == self.own_keep)
        return own or self.pruned or self.at
