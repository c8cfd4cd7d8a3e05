"""Scores against answers that are generated token by token, with the session that prunes as exports do."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iwp_export.errors import BackendError, RequestError
from iwp_export.exporter.live import open_live
from iwp_export.exporter.plan import plan_export
from iwp_export.exporter.settings_source import PAPER
from iwp_export.pruning.settings import PruningSettings, choices, names_of_settings
from iwp_export.questions import Question, read_questions
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.scorer import Scorer
from tests.exporter.tiny import write_llava

HELDOUT = Path(__file__).parents[1] / "calibration" / "tiny_llava" / "heldout" / "questions.jsonl"
QUESTIONS = list(islice(read_questions(HELDOUT), 0, 30, 7))
SEVERAL = Question((QUESTIONS[0].images[0], QUESTIONS[-1].images[0]), "what is the yellow digit ?", ("9",))


class Opened:
    """A model in torch and a scorer of it at all of its layers."""

    def __init__(self, model: str, dtype: str, max_new_tokens: int = 6) -> None:
        plan = plan_export(model, recipe=PAPER, pruning={"layer": 0})
        self.session, self.manifest, self.processor = open_live(plan, dtype)
        self.layers, self.tokens = self.manifest.decoder.layers, max_new_tokens
        self.scorer = Scorer(self.session, self.manifest, self.processor, range(self.layers), max_new_tokens)

    def pipeline(self, settings: PruningSettings) -> Pipeline:
        manifest = replace(self.manifest, pruning=settings)
        return Pipeline(manifest, self.processor, self.session.choosing(settings))

    def generate(self, prepared: Any, settings: PruningSettings, **options: Any) -> Any:
        options = {"max_new_tokens": self.tokens, **options}
        return self.pipeline(settings).generate_ids(prepared.token_ids, prepared.pictures, **options)


@pytest.fixture(scope="module")
def tiny() -> Opened:
    return Opened("tiny-llava", "float32")


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Opened:
    """A random model, whose answers are as long as may be."""
    folder = tmp_path_factory.mktemp("noise")
    write_llava(folder)
    return Opened(str(folder), "float32")


def draw_settings(seed: int, layers: int) -> PruningSettings:
    draw = random.Random(seed)
    values: dict[str, Any] = {name: draw.choice(choices(name)) for name in names_of_settings() if choices(name)}
    values |= {name: draw.random() < 0.5 for name in ("rope_in_importance", "rope_in_duplication")}
    values |= {"penalty": draw.choice([0.0, 1.0, 5.0]), "chunk": draw.randint(1, 3), "growth": draw.randint(1, 2)}
    if values["select"] == "coverage":
        values["importance"] = "value"
    return PruningSettings(layer=draw.randrange(layers), keep=draw.choice([0.02, 0.111, 0.222, 0.5]), **values)


def kl_of(base: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Mean divergence in nats of softmaxes of logits, in float64."""
    p, q = (np.stack(logits).astype(np.float64) for logits in (base, other))
    p, q = (
        x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x.max(1, keepdims=True) for x in (p, q)
    )
    return float((np.exp(p) * (p - q)).sum(1).mean())


def kept(opened: Opened, prepared: Any, settings: PruningSettings) -> list[list[int]]:
    """For each image, the visual tokens that a score is of, ascending."""
    with torch.no_grad():
        row = opened.scorer._kept_index(prepared, settings).numpy()
    ends = np.cumsum([picture.num_tokens for picture in prepared.pictures])
    parts = np.split(np.isin(np.flatnonzero(prepared.visual), row), ends[:-1])
    return [np.flatnonzero(part).tolist() for part in parts]


def compare(opened: Opened, question: Question, settings: list[PruningSettings]) -> list[float]:
    """Check every score of a question; returns the divergences."""
    prepared = opened.scorer.prepare(question)
    whole = opened.generate(prepared, PruningSettings(), keep=1.0, return_logits=True)
    assert prepared.answer == whole.text and prepared.best.tolist() == whole.token_ids
    found = []
    for one in settings:
        score = opened.scorer.score(prepared, one, with_answer=True)
        pruned = opened.generate(prepared, one)
        assert kept(opened, prepared, one) == pruned.kept, one
        assert score.agrees == (pruned.token_ids == whole.token_ids), one
        assert score.right == (None if question.answer is None else pruned.text == question.answer), one
        assert opened.scorer.answer(prepared, one) == pruned.text
        path = iter(whole.token_ids)
        forced = opened.generate(prepared, one, return_logits=True, choose=lambda logits, path=path: next(path))
        assert score.kl == pytest.approx(kl_of(whole.logits, forced.logits), rel=1e-3, abs=1e-5), one
        found.append(score.kl)
    return found


@pytest.mark.parametrize("number", range(len(QUESTIONS)))
def test_scores_are_those_of_generated_answers(tiny, number):
    question = replace(QUESTIONS[number], answers=() if number == 1 else QUESTIONS[number].answers)
    compare(tiny, question, [draw_settings(100 * number + seed, tiny.layers) for seed in range(8)])


def test_every_importance_is_scored(tiny):
    settings = [PruningSettings(layer=2, keep=0.222).with_changes(importance=name) for name in choices("importance")]
    settings += [PruningSettings(layer=2, keep=0.222, select="coverage")]
    assert len({round(kl, 6) for kl in compare(tiny, QUESTIONS[0], settings)}) > len(settings) / 2


def test_long_answers_and_several_images(noise):
    settings = [draw_settings(seed, noise.layers) for seed in range(8)]
    for question in (QUESTIONS[0], SEVERAL):
        kls = compare(noise, question, settings)
        assert max(kls) > 0.01
    prepared = noise.scorer.prepare(SEVERAL)
    assert len(prepared.best) == noise.tokens
    assert [len(kept) for kept in kept(noise, prepared, PruningSettings(layer=1, keep=1.0))] == [64, 64]
    assert sum(map(len, kept(noise, prepared, PruningSettings(layer=1, keep=1e-4)))) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_changes_where_every_token_stays(dtype, tiny):
    opened = tiny if dtype == "float32" else Opened("tiny-llava", dtype)
    for question in (QUESTIONS[0], SEVERAL):
        prepared = opened.scorer.prepare(question)
        for layer in (0, 3, opened.layers - 1):
            score = opened.scorer.score(prepared, PruningSettings(layer=layer, keep=1.0))
            assert score.agrees and score.kl == pytest.approx(0, abs=1e-6)
        pruned = opened.scorer.score(prepared, PruningSettings(layer=0, keep=1e-4), with_answer=True)
        assert pruned.kl > 0.01 and isinstance(pruned.right, bool)
        assert 0 < prepared.confidence <= 1


def test_a_question_is_asked_as_a_pipeline_asks_it(tiny):
    for question in (QUESTIONS[0], SEVERAL):
        answer = tiny.pipeline(PruningSettings())(list(question.images), question.prompt, keep=1.0, max_new_tokens=6)
        assert tiny.scorer.prepare(question).answer == answer.text


def test_what_cannot_be_asked_is_refused_before_the_model_runs(tiny, tmp_path):
    (tmp_path / "broken.png").write_bytes(QUESTIONS[0].images[0].read_bytes()[:200])
    for question, message in (
        (replace(QUESTIONS[0], images=(tmp_path / "broken.png",)), "cannot read the image"),
        (replace(QUESTIONS[0], images=QUESTIONS[0].images * 4), "the model takes 256"),
    ):
        with pytest.raises(RequestError, match=message):
            tiny.scorer.read(question)


def test_logits_that_are_not_finite_are_an_error(noise):
    prepared = noise.scorer.prepare(QUESTIONS[0])
    norm = noise.session.model.model.language_model.norm
    with torch.no_grad():
        weight = norm.weight.clone()
        norm.weight.fill_(torch.inf)
        try:
            with pytest.raises(BackendError, match="not finite in float32") as refused:
                noise.scorer.score(prepared, PruningSettings(layer=1))
        finally:
            norm.weight.copy_(weight)
    assert refused.value.options == ("dtype", "checkpoint_dtype")


@pytest.mark.parametrize("layer", [0, 1])
def test_without_the_image_is_a_choice_of_no_visual_token(noise: Opened, layer: int) -> None:
    """Teacher-forced along the unpruned answer, against steps of a session that drops every visual token."""
    settings = PruningSettings(layer=layer)
    session = noise.session.choosing(settings, lambda *inputs: torch.nonzero(~inputs[3][0])[:, 0][None])
    manifest = replace(noise.manifest, pruning=settings)
    pipeline = Pipeline(manifest, noise.processor, session)
    prepared = noise.scorer.prepare(replace(QUESTIONS[0], answers=("no such answer",)))
    tokens = noise.generate(prepared, settings, keep=1.0).token_ids
    rest = iter(tokens)
    result = pipeline.generate_ids(
        prepared.token_ids,
        prepared.pictures,
        max_new_tokens=len(tokens),
        choose=lambda logits: next(rest),
        stop_at_eos=False,
        return_logits=True,
    )
    logits = noise.scorer.logits(prepared, settings, blind=True).numpy()
    assert result.logits is not None
    assert np.abs(logits - np.stack(result.logits)).max() < 1e-3
    score = noise.scorer.score(prepared, settings, True, blind=True)
    assert score.kl > 0 and score.right is False
