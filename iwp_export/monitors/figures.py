"""What the monitors measure, as values that a report holds. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from iwp_export.view.figures import Interval

Measure = Literal["accuracy", "agreement"]
"""Right answers where the data have them, else answers that stay the unpruned model's."""
LAST_LAYERS = 4
"""One in so many layers counts among the last ones."""


@dataclass(frozen=True)
class LayerFigures:
    """Attention in one layer, with every visual token and with pruning; means over questions.

    Each figure of a question is a mean over heads and over the text tokens of the prompt that come after the image
    and so can see it.

    Attributes:
        layer: from 0.
        retention: share of the visual tokens that the layer sees with pruning, from 0 to 1.
        entropy, entropy_pruned: of a query's weights, in nats.
        visual, visual_pruned: share of a query's weight that is on visual tokens, from 0 to 1.
    """

    layer: int
    retention: float
    entropy: Interval
    entropy_pruned: Interval
    visual: Interval
    visual_pruned: Interval


@dataclass(frozen=True)
class Kept:
    """What is left of the model's answers, against the unpruned model's; 95 % intervals.

    Attributes:
        kl: divergence of the next token's distribution, in nats: mean over an answer's tokens, then over questions.
        agreement: share of questions whose greedy answer is the same, from 0 to 1.
        accuracy: share of right answers, from 0 to 1; None where a question has no answer.
        kinds: share of right answers by kind of question; empty without kinds or answers.
    """

    kl: Interval
    agreement: Interval
    accuracy: Interval | None
    kinds: Mapping[str, float]


@dataclass(frozen=True)
class DepthPoint:
    """`left` where no visual token goes on from `layer` on. A layer beyond the last one stands for every token."""

    layer: int
    left: Kept


@dataclass(frozen=True)
class BudgetPoint:
    """`left` where a share `keep` of the visual tokens goes on past the pruning layer."""

    keep: float
    left: Kept


@dataclass(frozen=True)
class Monitors:
    """What was measured on a number of questions.

    Attributes:
        data: what the set of questions is called.
        questions: how many.
        layers: of the language model.
        pruning_layer, keep: the artefact's settings.
        visual_tokens, text_tokens: of a prompt, means.
        attention: by layer; empty if it was not asked for.
        depth: the read-depth curve, by layer, the last point with every token.
        budget: by keep, the largest first; it begins with 1.
    """

    data: str
    questions: int
    layers: int
    pruning_layer: int
    keep: float
    visual_tokens: float
    text_tokens: float
    attention: tuple[LayerFigures, ...]
    depth: tuple[DepthPoint, ...]
    budget: tuple[BudgetPoint, ...]

    def check(self) -> None:
        """Raises ValueError where a file's fields contradict each other."""
        if not self.depth or not self.budget:
            raise ValueError("a curve has no point")
        lefts = [point.left for point in self.depth] + [point.left for point in self.budget]
        if len({left.accuracy is None for left in lefts}) != 1:
            raise ValueError("some points have an accuracy and some have none")

    @property
    def measure(self) -> Measure:
        """What curves are drawn of."""
        return "agreement" if self.depth[-1].left.accuracy is None else "accuracy"

    def score(self, left: Kept) -> Interval:
        """Of `measure`."""
        return left.agreement if left.accuracy is None else left.accuracy

    @property
    def whole(self) -> Interval:
        """The score with every token."""
        return self.score(self.depth[-1].left)

    @property
    def blind(self) -> Interval:
        """The score without the image, from the first layer that can be pruned on."""
        return self.score(self.depth[0].left)

    def last_layers(self) -> Sequence[LayerFigures]:
        """The last quarter of the layers."""
        return self.attention[-max(1, len(self.attention) // LAST_LAYERS) :]
