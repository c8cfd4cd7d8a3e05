"""Measures the monitors' figures by a checkpoint in torch, question by question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from iwp_export.accuracy.figures import ALL
from iwp_export.accuracy.measure import shares
from iwp_export.accuracy.scoring import share
from iwp_export.backends.torch.decoder import Projected, Stream
from iwp_export.backends.torch.session import TorchSession
from iwp_export.bundle.manifest import Manifest
from iwp_export.errors import DataError
from iwp_export.monitors.attention import Attention, look_at
from iwp_export.monitors.figures import BudgetPoint, DepthPoint, Kept, LayerFigures, Monitors
from iwp_export.progress import progress
from iwp_export.pruning.settings import PruningSettings
from iwp_export.questions import MAX_NEW_TOKENS, DataSet, Question
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.processor import Processor
from iwp_export.scorer import Prepared, Reference, Score, Scorer
from iwp_export.view.figures import bootstrap_mean

KEEPS = (0.5, 0.353, 0.222, 0.111, 0.05)


def measure_monitors(
    pipeline: Pipeline,
    reference: Reference,
    data: DataSet,
    settings: PruningSettings | None = None,
    keeps: Sequence[float] = KEEPS,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Monitors:
    """All figures of an artefact.

    Args:
        pipeline: the artefact's, which gives manifest and processor.
        reference: its checkpoint.
        data: what is asked; figures of accuracy need an answer for each question.
        settings: where and how to prune; the artefact's if None.
        keeps: budgets of the curve, beside 1 and the settings' own.
        max_new_tokens: length of an answer at most.

    Raises:
        DataError: no questions.
        RequestError: a question that cannot be asked.
        BackendError: the model's logits are not finite.
    """
    settings = settings or pipeline.manifest.pruning
    session = TorchSession(reference.model, reference.family, settings)
    return Monitoring(session, pipeline.manifest, pipeline.processor, settings, max_new_tokens).measure(data, keeps)


class Monitoring:
    """A model in torch that is measured.

    It holds the states and projections of every layer for one question at a time: six times the hidden states of a
    prompt for each layer, some 2 GB of a 7B model in float32 with 700 tokens.

    Args:
        session: the model.
        manifest: what an export of it says.
        processor: its processor.
        settings: where and how to prune.
        max_new_tokens: length of an answer at most.
    """

    def __init__(
        self,
        session: TorchSession,
        manifest: Manifest,
        processor: Processor,
        settings: PruningSettings,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        self.settings, self.layers = settings, manifest.decoder.layers
        self._scorer = Scorer(session, manifest, processor, range(self.layers), max_new_tokens)
        self._decoder = session.decoder
        self._prunable = tuple(session.family.prunable_layers(session.model.config))

    def measure(self, data: DataSet, keeps: Sequence[float] = KEEPS) -> Monitors:
        """All figures; see `measure_monitors`."""
        questions = data.questions
        if not questions:
            raise DataError("monitors need a question at least")
        budgets = sorted({*keeps, self.settings.keep} - {1.0}, reverse=True)
        depth: dict[int, list[Score]] = defaultdict(list)
        budget: dict[float, list[Score]] = defaultdict(list)
        looks: list[tuple[list[Attention], list[Attention]]] = []
        tokens = []
        with progress("Monitoring", len(questions)) as advance:
            for question in questions:
                prepared = self._scorer.prepare(question)
                visual = int(prepared.visual.sum())
                tokens.append((visual, len(prepared.visual) - visual))
                for layer, score in self._depth(prepared).items():
                    depth[layer].append(score)
                for keep in budgets:
                    settings = replace(self.settings, keep=keep)
                    budget[keep].append(self._scorer.score(prepared, settings, with_answer=True))
                budget[1.0].append(depth[self.layers][-1])
                looks.append(self._attention(prepared))
                advance(1)
        mean_visual, mean_text = np.mean(tokens, 0)
        return Monitors(
            data=data.name,
            questions=len(questions),
            layers=self.layers,
            pruning_layer=self.settings.layer,
            keep=self.settings.keep,
            visual_tokens=float(mean_visual),
            text_tokens=float(mean_text),
            attention=self._layers(looks, [visual for visual, _ in tokens]),
            depth=tuple(DepthPoint(layer, _kept(questions, scores)) for layer, scores in depth.items()),
            budget=tuple(BudgetPoint(keep, _kept(questions, budget[keep])) for keep in (1.0, *budgets)),
        )

    def depth(self, questions: Sequence[Question]) -> tuple[DepthPoint, ...]:
        """The read-depth curve alone."""
        found: dict[int, list[Score]] = defaultdict(list)
        for question in questions:
            for layer, score in self._depth(self._scorer.prepare(question)).items():
                found[layer].append(score)
        return tuple(DepthPoint(layer, _kept(questions, scores)) for layer, scores in found.items())

    def _depth(self, prepared: Prepared) -> dict[int, Score]:
        """By the first layer that sees no visual token; the last one is the unpruned model."""
        scores = {layer: self._scorer.score_without_image(prepared, layer) for layer in self._prunable}
        return {**scores, self.layers: Score(0.0, True, prepared.right)}

    def _attention(self, prepared: Prepared) -> tuple[list[Attention], list[Attention]]:
        """Of each layer, with every visual token and with pruning. Below the pruning layer the two are one."""
        prompt = len(prepared.token_ids)
        unpruned = [self._look(layer, *prepared.layers[layer], prompt) for layer in range(self.layers)]
        pruned = unpruned[: self.settings.layer]
        dropped = int(prepared.visual.sum()) - self.settings.num_keep(int(prepared.visual.sum()))

        def look(layer: int, stream: Stream, projected: Projected) -> None:
            pruned.append(self._look(layer, stream, projected, prompt - dropped))

        self._scorer.logits(prepared, self.settings, look)
        return unpruned, pruned

    def _look(self, layer: int, stream: Stream, projected: Projected, prompt: int) -> Attention:
        return look_at(stream, projected, prompt, self._decoder.language_model.layers[layer].self_attn.scaling)

    def _layers(
        self, looks: Sequence[tuple[list[Attention], list[Attention]]], visual: Sequence[int]
    ) -> tuple[LayerFigures, ...]:
        return tuple(
            LayerFigures(
                layer,
                float(np.mean([after[layer].seen / count for (_, after), count in zip(looks, visual, strict=True)])),
                bootstrap_mean([before[layer].entropy for before, _ in looks]),
                bootstrap_mean([after[layer].entropy for _, after in looks]),
                bootstrap_mean([before[layer].visual for before, _ in looks]),
                bootstrap_mean([after[layer].visual for _, after in looks]),
            )
            for layer in range(self.layers)
        )


def _kept(questions: Sequence[Question], scores: Sequence[Score]) -> Kept:
    right = [score.right for score in scores if score.right is not None]
    complete = len(right) == len(scores)
    kinds = shares(questions, right) if complete else {}
    return Kept(
        bootstrap_mean([score.kl for score in scores]),
        share([score.agrees for score in scores]),
        share(right) if complete else None,
        {kind: value for kind, value in kinds.items() if kind != ALL},
    )
