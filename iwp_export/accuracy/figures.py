"""What pruning costs, as plain figures. Shares are from 0 to 1; intervals are of 95 %."""

from __future__ import annotations

from dataclasses import dataclass

from iwp_export.view.figures import Interval

ALL = "all"
"""The kind that holds every question."""


@dataclass(frozen=True)
class Kind:
    """Figures of one kind of question at one keep ratio.

    Attributes:
        name: the kind; `ALL` for every question.
        questions: how many there are.
        score: share of right answers; None where the data has no answers.
        agreement: share of answers that are the unpruned model's to the letter.
    """

    name: str
    questions: int
    score: Interval | None
    agreement: Interval


@dataclass(frozen=True)
class AtKeep:
    """What was measured at one keep ratio.

    Attributes:
        keep: the ratio.
        visual_tokens_kept: mean of a question.
        cut: share of answers that `max_new_tokens` cut off.
        relative: score divided by that of keep 1 on the same questions; None at keep 1, where that is 0, and where the
            data has no answers.
        kinds: by kind of question, all of them last.
        scores: of each question, in order; empty where the data has no answers.
        same: of each question, whether its answer is the unpruned model's.
    """

    keep: float
    visual_tokens_kept: float
    cut: float
    relative: Interval | None
    kinds: tuple[Kind, ...]
    scores: tuple[float, ...]
    same: tuple[bool, ...]

    @property
    def score(self) -> Interval | None:
        """Of every question."""
        return self.kinds[-1].score

    @property
    def agreement(self) -> Interval:
        """Of every question."""
        return self.kinds[-1].agreement


@dataclass(frozen=True)
class Answered:
    """A question as it was answered with and without pruning. Texts are in one line.

    Attributes:
        number: of the question in its data, from 1.
        images: names of the files.
        prompt: the question.
        right: the right answers, each once; empty without answers.
        unpruned, pruned: the answers at keep 1 and at `keep`.
        keep: the ratio.
        pictures: of each image as the model saw it, dropped tokens dimmed, a JPEG file in base64.
    """

    number: int
    images: tuple[str, ...]
    prompt: str
    right: tuple[str, ...]
    unpruned: str
    pruned: str
    keep: float
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class Original:
    """The checkpoint's own answers to the first questions, which share nothing with the artefact.

    Attributes:
        same: of each, whether it is the artefact's unpruned answer.
        scores: of each; empty where the data has no answers.
        relative: the artefact's unpruned score divided by the checkpoint's; None where that is 0 or there is none.
    """

    same: tuple[bool, ...]
    scores: tuple[float, ...]
    relative: Interval | None


@dataclass(frozen=True)
class Accuracy:
    """An artefact's scores on a set of questions.

    Attributes:
        data: name of the questions.
        digest: SHA-256 of prompts, answers and images, see `questions.digest_of`.
        questions: how many were asked.
        score: how answers were scored, a name of `scoring.SCORES`; empty where the data has no answers.
        max_new_tokens: length of an answer at most.
        own_keep: the ratio with which the artefact was exported.
        calibrated: whether the artefact's settings were chosen on these data.
        visual_tokens: mean of a question before pruning.
        at: by keep ratio, from 1 downward.
        examples: a few questions, those of which pruning changed the answer first.
        original: against the checkpoint itself; None where there is none to ask.
    """

    data: str
    digest: str
    questions: int
    score: str
    max_new_tokens: int
    own_keep: float
    calibrated: bool
    visual_tokens: float
    at: tuple[AtKeep, ...]
    examples: tuple[Answered, ...] = ()
    original: Original | None = None

    @property
    def unpruned(self) -> AtKeep:
        """What was measured at keep 1."""
        return self.at[0]

    @property
    def shipped(self) -> tuple[AtKeep, ...]:
        """What gates are about: the artefact's own ratio if it was measured, else all below 1, or 1 alone."""
        own = tuple(each for each in self.at if each.keep == self.own_keep)
        return own or self.at[1:] or self.at
