"""Monitors of tiny-llava against transformers' own attention and against a second way to hide the image."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from calibration.tiny_llava import HELDOUT
from calibration.tiny_llava.evaluate import answers_with_kept, layer_curve, load_checkpoint, prepare
from iwp_export.backends.torch.decoder import Projected, Stream
from iwp_export.exporter.live import open_live
from iwp_export.exporter.plan import plan_export
from iwp_export.exporter.settings_source import PAPER
from iwp_export.monitors.figures import Monitors
from iwp_export.monitors.measure import look_at, measure_monitors
from iwp_export.pruning.settings import PruningSettings
from iwp_export.questions import DataSet, Question, read_questions
from iwp_export.runtime.pipeline import Pipeline

FOLDER = Path(__file__).parents[2] / "iwp_export" / "assets" / "tiny_llava"
QUESTIONS = list(islice(read_questions(HELDOUT), 6))
NO_ANSWERS = [Question(question.images, question.prompt) for question in QUESTIONS[:2]]


def measured(questions: list[Question]) -> Monitors:
    plan = plan_export("tiny-llava", recipe=PAPER)
    session, manifest, processor = open_live(plan, "float32")
    pipeline = Pipeline(replace(manifest, pruning=plan.settings), processor, session)
    return measure_monitors(pipeline, session, DataSet("some", tuple(questions)))


@pytest.fixture(scope="module")
def found() -> Monitors:
    return measured(QUESTIONS)


def test_uniform_attention_by_hand() -> None:
    """Zero queries weigh what they see alike: text 2 sees 3 tokens, text 3 sees 4, of which 2 are visual."""
    stream = Stream(torch.zeros(1, 4, 8), (torch.zeros(1), torch.zeros(1)), torch.tensor([[0, 1, -1, -1]]))
    query = torch.zeros(1, 4, 4, 2)
    projected = Projected(query, query[:, :2], query[:, :2], query, torch.randn(1, 2, 4, 2))
    entropy, seen = look_at(stream, projected, 4, 1.0)
    assert entropy == pytest.approx((math.log(3) + math.log(4)) / 2) and seen == 2
    assert look_at(stream, projected, 3, 1.0)[0] == pytest.approx(math.log(3))  # an answer's tokens do not ask


def test_attention_is_that_of_transformers(found: Monitors) -> None:
    model, processor = load_checkpoint(FOLDER, torch.float32)
    model.set_attn_implementation("eager")
    entropies = []
    for inputs in (next(prepare(processor, [question])) for question in QUESTIONS):
        with torch.no_grad():
            weights = torch.stack(model(**inputs, output_attentions=True).attentions)[:, 0]  # [L, H, S, S]
        visual = inputs["input_ids"][0] == model.config.image_token_id
        rows: Tensor = weights[:, :, (~visual) & (visual.cumsum(0) > 0)]
        entropies.append(torch.special.entr(rows).sum(-1).mean((1, 2)))
    expected = torch.stack(entropies).mean(0).tolist()
    assert [each.entropy.mean for each in found.attention] == pytest.approx(expected, abs=1e-4)


def test_pruning_changes_attention_from_its_layer_on(found: Monitors) -> None:
    layer = found.pruning_layer
    for each in found.attention:
        if each.layer < layer:
            assert (each.retention, each.entropy_pruned) == (1, each.entropy)
        else:
            assert each.retention == math.ceil(PruningSettings().keep * 64) / 64
            assert each.entropy_pruned.mean < each.entropy.mean


def test_the_curve_is_that_of_masks_in_transformers(found: Monitors) -> None:
    model, processor = load_checkpoint(FOLDER, torch.float32)
    none = torch.zeros(len(QUESTIONS), 64, dtype=torch.bool)
    for point in found.depth[:-1]:
        words = answers_with_kept(model, processor, QUESTIONS, none, point.layer)
        right = [word == question.answer for word, question in zip(words, QUESTIONS, strict=True)]
        assert point.accuracy is not None
        assert point.accuracy.mean == pytest.approx(sum(right) / len(right))
    curve = layer_curve(FOLDER, QUESTIONS)
    assert [curve[str(point.layer)]["all"] for point in found.depth[:-1]] == pytest.approx(
        [point.accuracy.mean for point in found.depth[:-1] if point.accuracy], abs=1e-4
    )


def test_the_ends_of_the_curve(found: Monitors) -> None:
    blind, whole = found.depth[0], found.depth[-1]
    assert [point.layer for point in found.depth] == list(range(9))
    assert whole.score.mean > blind.score.mean + 0.4
    assert whole.kl.mean == 0 < blind.kl.mean


def test_without_answers_the_score_is_agreement() -> None:
    found = measured(NO_ANSWERS)
    assert found.depth[-1].accuracy is None and found.depth[-1].score.mean == 1
