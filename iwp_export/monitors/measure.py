"""Measures by a checkpoint in torch, question by question, where it reads its image and how widely text attends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from iwp_export.backends.session import Array
from iwp_export.backends.torch.decoder import Projected, Stream
from iwp_export.backends.torch.session import TorchSession
from iwp_export.monitors.figures import DepthPoint, LayerFigures, Monitors
from iwp_export.progress import progress
from iwp_export.questions import MAX_NEW_TOKENS, DataSet
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.scorer import Score, Scorer
from iwp_export.view.figures import bootstrap_mean, share_of

Look = tuple[float, int]
"""Entropy of attention in nats, and visual tokens that are seen."""


def look_at(stream: Stream, projected: Projected, prompt: int, scaling: float) -> Look:
    """How widely the prompt's text tokens after the first visual token attend; its last token if none follows.

    Args:
        stream: the tokens that the layer sees, of one call from the first token on.
        projected: the layer's projections of them.
        prompt: how many of them are the prompt's, which come first.
        scaling: the factor of the scores before softmax.

    Returns:
        The entropy of attention, mean over heads and queries, and how many visual tokens the layer sees.
    """
    visual = stream.feature_index[0] >= 0
    places = torch.arange(len(visual), device=visual.device)
    first = int(places[visual][0]) if visual.any() else 0
    queries = places[~visual & (places > first) & (places < prompt)]
    queries = queries if len(queries) else places[prompt - 1 : prompt]
    query, key = projected.rotated_query[0].float(), projected.rotated_key[0].float()
    ahead = places[None] > queries[:, None]
    entropies = []
    for head, own in enumerate(query):  # one at a time: a long prompt's weights of all heads fill the memory
        scores = own[queries] @ key[head * len(key) // len(query)].T * scaling
        weights = torch.softmax(scores.masked_fill(ahead, -torch.inf), -1)
        entropies.append(torch.special.entr(weights).sum(-1).mean())  # a weight of 0 adds nothing
    return float(torch.stack(entropies).mean()), int(visual.sum())


def measure_monitors(
    pipeline: Pipeline, session: TorchSession, data: DataSet, max_new_tokens: int = MAX_NEW_TOKENS
) -> Monitors:
    """Attention by layer and the read-depth curve of a checkpoint, with an artefact's pruning settings.

    Holds the states and projections of every layer for one question at a time: six times the hidden states of a prompt
    for each layer, some 2 GB of a 7B model in float32 with 700 tokens.

    Args:
        pipeline: the artefact's, which gives manifest and processor.
        session: its checkpoint in torch.
        data: what is asked; figures of accuracy need an answer for each question.
        max_new_tokens: length of an answer at most.

    Raises:
        RequestError: a question that cannot be asked.
        BackendError: the model's logits are not finite.
    """
    layers, settings = pipeline.manifest.decoder.layers, pipeline.manifest.pruning
    scorer = Scorer(session, pipeline.manifest, pipeline.processor, range(layers), max_new_tokens)
    scaling = [layer.self_attn.scaling for layer in session.decoder.language_model.layers]
    prunable = session.family.prunable_layers(session.model.config)
    depth: dict[int, list[Score]] = defaultdict(list)
    looks: list[tuple[list[Look], list[Look]]] = []
    with progress("Monitoring", len(data.questions)) as advance:
        for question in data.questions:
            prepared = scorer.prepare(question)
            for layer in prunable:
                depth[layer].append(scorer.score(prepared, replace(settings, layer=layer), True, blind=True))
            depth[layers].append(Score(0.0, True, prepared.right))
            prompt, visual = len(prepared.token_ids), int(prepared.visual.sum())
            before = [look_at(*prepared.layers[layer], prompt, scaling[layer]) for layer in range(layers)]
            after = before[: settings.layer]  # below the pruning layer the two are one
            left = prompt - visual + settings.num_keep(visual)

            def look(layer: int, stream: Stream, projected: Projected, left: int = left, to: list = after) -> None:
                to.append(look_at(stream, projected, left, scaling[layer]))

            scorer.logits(prepared, settings, look)
            looks.append((before, after))
            advance(1)
    return Monitors(
        data=data.name,
        questions=len(data.questions),
        pruning_layer=settings.layer,
        attention=tuple(_layer(layer, np.array(looks)[:, :, layer]) for layer in range(layers)),
        depth=tuple(_point(layer, scores) for layer, scores in depth.items()),
    )


def _layer(layer: int, looks: Array) -> LayerFigures:
    """Of looks [questions, 2, 2]: without and with pruning, entropy and count."""
    entropy, count = looks[..., 0], looks[..., 1]
    retention = float(np.mean(count[:, 1] / count[:, 0]))
    return LayerFigures(layer, retention, bootstrap_mean(entropy[:, 0]), bootstrap_mean(entropy[:, 1]))


def _point(layer: int, scores: Sequence[Score]) -> DepthPoint:
    right = [score.right for score in scores if score.right is not None]
    accuracy = share_of(right) if len(right) == len(scores) else None
    kl, agreement = bootstrap_mean([score.kl for score in scores]), share_of([score.agrees for score in scores])
    return DepthPoint(layer, kl, agreement, accuracy)
