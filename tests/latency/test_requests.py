"""What is asked, and caches that are what pruning leaves, and caches that are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from iwp_export.errors import DataError
from iwp_export.latency.requests import choose_questions, prove_dropped
from iwp_export.latency.verdict import gates
from iwp_export.questions import DataSet, Question
from iwp_export.settings import BenchSettings
from tests.latency.made import latency, pipeline_on
from tests.runtime.toy import ToyCache, ToySession, toy_manifest

QUESTION = Question((np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8),), "what is it ?")  # type: ignore
SHIPPED = Path(__file__).parents[2] / "iwp_export" / "assets" / "tiny_llava_samples" / "questions.jsonl"
MANIFEST = toy_manifest()
TINY = replace(MANIFEST, model=replace(MANIFEST.model, name="tiny-llava"))


def chosen(manifest=TINY, images=(), prompt=None, data=None, limit=7) -> DataSet:
    return choose_questions(manifest, images, prompt, data, limit)


def test_what_is_asked():
    assert len(chosen().questions) == 7 and chosen().name == "the first 7 samples of tiny-llava"
    every = chosen(limit=10**6)
    assert every.name == f"the first {len(every.questions)} samples of tiny-llava"
    assert chosen(MANIFEST, data=SHIPPED, limit=3).name == "the first 3 questions of questions.jsonl"
    given = chosen(images=[Path("a.png")], prompt="what ?")
    assert given.questions == (Question((Path("a.png"),), "what ?"),)


def test_a_prompt_alone_is_asked_of_a_synthetic_image():
    for prompt in ("what ?", ""):
        asked = chosen(prompt=prompt)
        assert asked.questions[0].prompt == prompt and "synthetic image of 640 x 480" in asked.name
    assert np.asarray(chosen(MANIFEST).questions[0].images[0]).shape == (480, 640, 3)


def test_a_file_and_a_prompt_exclude_each_other():
    with pytest.raises(DataError, match="not both"):
        chosen(prompt="what ?", data=SHIPPED)


class KeepsAll(ToySession):
    """Says that it drops tokens, and does not."""

    def step(self, inputs, features, cache):
        output = super().step(replace(inputs, num_kept=inputs.input_ids.size), features, cache)
        return replace(output, kept_index=output.kept_index[: inputs.num_kept])


class LosesARow(ToySession):
    """Loses a row of its last layer."""

    def step(self, inputs, features, cache):
        output = super().step(inputs, features, cache)
        if inputs.input_ids.size > 1:
            cache.layers[1] = cache.layers[1][1:]
        return output


class DropsOne(ToySession):
    """Keeps a token fewer than it was asked to."""

    def step(self, inputs, features, cache):
        few = max(1, inputs.num_kept - (inputs.num_kept < inputs.input_ids.size))
        return super().step(replace(inputs, num_kept=few), features, cache)


class HoldsOthers(ToySession):
    """Caches other tokens than those that it says were kept, as many of them."""

    def step(self, inputs, features, cache):
        output = super().step(inputs, features, cache)
        if inputs.num_kept < inputs.input_ids.size:
            cache.layers[1] = cache.layers[1][::-1]
        return output


def checked(session, keep=0.25):
    found = prove_dropped(pipeline_on(session), QUESTION, keep)
    return found, gates(latency(dropped=found), BenchSettings())


def test_what_pruning_leaves():
    (pruned, unpruned), found = checked(ToySession())
    text = unpruned.found[0] - 65
    assert pruned.expected == pruned.found == (text + 65, text + 17)
    assert unpruned.expected == unpruned.found == (text + 65, text + 65)
    assert pruned.holds and [gate.passed for gate in found] == [True, True]


@pytest.mark.parametrize("kind", [KeepsAll, LosesARow, DropsOne, HoldsOthers])
def test_faults_fail_the_gate(kind):
    _, found = checked(kind())
    dropped = next(gate for gate in found if gate.name == "tokens-dropped")
    assert not dropped.passed and dropped.where and dropped.remedy


def test_what_the_session_reports_is_not_taken_where_the_buffers_can_be_read(monkeypatch):
    monkeypatch.setattr(ToyCache, "lengths", property(lambda self: (74, 26)))
    (pruned, _), found = checked(KeepsAll())
    assert pruned.found[1] == pruned.found[0] and not found[0].passed


def test_a_ratio_that_leaves_every_token_is_no_pruning():
    """0.999 of 64 tokens are 64: caches as long as they should be prove nothing."""
    _, (dropped, kept) = checked(ToySession(), 0.999)
    assert (dropped.passed, kept.passed) == (False, True)
    assert "as long as the unpruned ones" in dropped.where and "smaller keep ratio" in dropped.remedy


def test_text_alone_drops_nothing():
    pruned, unpruned = prove_dropped(pipeline_on(ToySession()), Question((), "what is it ?"), 0.25)
    assert pruned.found == pruned.expected == unpruned.found
