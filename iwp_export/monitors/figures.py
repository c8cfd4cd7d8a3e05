"""What the monitors measure, as values that a report holds. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from iwp_export.view.figures import Interval


@dataclass(frozen=True)
class LayerFigures:
    """Attention in one layer, with every visual token and with pruning; means over questions.

    The entropy of a question is a mean over heads and over the text tokens of the prompt that come after the image and
    so can see it.

    Attributes:
        layer: from 0.
        retention: share of the visual tokens that the layer sees with pruning, from 0 to 1.
        entropy, entropy_pruned: of a query's weights, in nats.
    """

    layer: int
    retention: float
    entropy: Interval
    entropy_pruned: Interval


@dataclass(frozen=True)
class DepthPoint:
    """What is left of the answers where no visual token goes on from a layer on; 95 % intervals.

    Attributes:
        layer: from 0; one beyond the last layer stands for every token.
        kl: divergence of the next token's distribution from the unpruned model's, in nats: mean over an answer's
            tokens, then over questions.
        agreement: share of questions whose greedy answer is the unpruned model's, from 0 to 1.
        accuracy: share of right answers, from 0 to 1; None where a question has no answer.
    """

    layer: int
    kl: Interval
    agreement: Interval
    accuracy: Interval | None

    @property
    def score(self) -> Interval:
        """The accuracy, or without answers the agreement."""
        return self.accuracy or self.agreement


@dataclass(frozen=True)
class Monitors:
    """What was measured on a number of questions.

    Attributes:
        data: what the set of questions is called.
        questions: how many.
        pruning_layer: the artefact's.
        attention: by layer.
        depth: the read-depth curve, by layer; the last point is with every token.
    """

    data: str
    questions: int
    pruning_layer: int
    attention: tuple[LayerFigures, ...]
    depth: tuple[DepthPoint, ...]
