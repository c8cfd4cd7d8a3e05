"""Choosing tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from iwp_export.bundle.manifest import GenerationInfo
from iwp_export.bundle.schema import Flaw, from_json, to_json
from iwp_export.errors import BackendError, RequestError
from iwp_export.runtime.sampling import NO_WISHES, AnswerOptions, adjust_logits, candidates, greedy, make_chooser
from tests.runtime.toy import toy_pipeline

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15], np.float32))


def draws(count: int = 4000, generation: GenerationInfo = NO_WISHES, **options: Any) -> np.ndarray[Any, Any]:
    choose = make_chooser(AnswerOptions(**{"temperature": 1.0, "seed": 0, **options}), generation)
    return np.bincount([choose(LOGITS) for _ in range(count)], minlength=5) / count


def test_greedy_takes_the_first_of_equal_logits() -> None:
    assert greedy(np.array([1, 3, 3, 2], np.float32)) == 1
    assert make_chooser(AnswerOptions())(LOGITS) == 1


@pytest.mark.parametrize("logits", [[0, np.nan], [np.inf, 0], [-np.inf, -np.inf]])
def test_logits_that_are_not_finite_are_an_error(logits: list[float]) -> None:
    with pytest.raises(BackendError, match="not finite"):
        greedy(np.array(logits, np.float32))


def test_masked_logits_are_no_error() -> None:
    masked = np.array([-np.inf, 1, -np.inf], np.float32)
    assert greedy(masked) == make_chooser(AnswerOptions(temperature=1, seed=1))(masked) == 1


def test_draws_follow_the_probabilities() -> None:
    np.testing.assert_allclose(draws(), np.exp(LOGITS), atol=0.03)
    flat = draws(temperature=100.0)
    np.testing.assert_allclose(flat, 0.2, atol=0.03)
    assert draws(temperature=1e-3)[1] == 1


def test_top_k() -> None:
    np.testing.assert_allclose(draws(top_k=2), [0, 4 / 7, 0, 3 / 7, 0], atol=0.03)
    assert draws(top_k=1)[1] == 1
    np.testing.assert_allclose(draws(top_k=100), np.exp(LOGITS), atol=0.03)


def test_top_p_keeps_the_token_that_reaches_the_sum() -> None:
    np.testing.assert_allclose(draws(top_p=0.5), [0, 4 / 7, 0, 3 / 7, 0], atol=0.03)
    assert draws(top_p=0.3)[1] == 1
    np.testing.assert_allclose(draws(top_p=1.0), np.exp(LOGITS), atol=0.03)


def test_top_k_comes_before_top_p() -> None:
    # Of the two most likely tokens the first has 4/7 of the probability, so top_p = 0.5 leaves it alone.
    assert draws(top_k=2, top_p=0.5)[1] == 1


def test_a_seed_repeats() -> None:
    first, second, other = (make_chooser(AnswerOptions(temperature=1.0, seed=seed)) for seed in (7, 7, 8))
    sequence = [first(LOGITS) for _ in range(50)]
    assert sequence == [second(LOGITS) for _ in range(50)]
    assert sequence != [other(LOGITS) for _ in range(50)]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"temperature": 1, "top_k": 0},
        {"temperature": 1, "top_k": 1.5},
        {"temperature": 1, "top_p": 0},
        {"temperature": 1, "top_p": 1.1},
        {"top_k": 5},
        {"top_p": 0.9},
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        make_chooser(AnswerOptions(**options))


WISHES: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"suppress_tokens": [3, 17, 5]},
    {"begin_suppress_tokens": [8, 9]},
    {"min_new_tokens": 2},
    {"min_length": 9},
    {
        "repetition_penalty": 1.1,
        "suppress_tokens": [0],
        "begin_suppress_tokens": [1, 2],
        "min_new_tokens": 3,
        "min_length": 8,
    },
]


@pytest.mark.parametrize("wishes", WISHES, ids=lambda wishes: ",".join(wishes) or "none")
def test_logits_are_adjusted_as_in_transformers(wishes: dict[str, Any]) -> None:
    """On random logits, with a prompt of 6 tokens of which one (an image's) has no logit, and 0 to 4 generated."""
    import torch
    from transformers import GenerationConfig, LogitsProcessorList
    from transformers.generation import logits_process as processors

    config, eos, prompt, size = GenerationConfig(**wishes), [3, 11], 6, 40
    reference = LogitsProcessorList()
    if config.repetition_penalty is not None:
        reference.append(processors.RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.min_length is not None:
        reference.append(processors.MinLengthLogitsProcessor(config.min_length, eos))
    if config.min_new_tokens is not None:
        reference.append(processors.MinNewTokensLengthLogitsProcessor(prompt, config.min_new_tokens, eos))
    if config.suppress_tokens is not None:
        reference.append(processors.SuppressTokensLogitsProcessor(config.suppress_tokens))
    if config.begin_suppress_tokens is not None:
        reference.append(processors.SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, prompt))
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in wishes.items()}
    generation = GenerationInfo(**values)
    rng = np.random.default_rng(0)
    for generated in range(5):
        ids = [*rng.integers(0, size, prompt + generated - 1).tolist(), size + 2]
        logits = (3 * rng.standard_normal(size)).astype(np.float32)
        before = logits.copy()
        ours = adjust_logits(logits, generation, eos, ids, generated)
        theirs = reference(torch.tensor([ids]), torch.from_numpy(logits)[None].clone())[0].numpy()
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 3.0])
@pytest.mark.parametrize(
    "wishes", [{}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 7, "top_p": 0.8, "min_p": 0.1}], ids=str
)
def test_candidates_are_those_of_transformers(temperature: float, wishes: dict[str, Any]) -> None:
    import torch
    from transformers.generation import logits_process as processors

    warpers: list[Any] = [processors.TemperatureLogitsWarper(temperature)]
    kinds = {
        "top_k": processors.TopKLogitsWarper,
        "top_p": processors.TopPLogitsWarper,
        "min_p": processors.MinPLogitsWarper,
    }
    warpers += [kind(wishes[name]) for name, kind in kinds.items() if name in wishes]
    rng = np.random.default_rng(1)
    for ties in (False, True) * 10:
        logits = (2 * rng.standard_normal(60)).astype(np.float32)
        logits = np.round(logits) if ties and "top_p" not in wishes else logits
        scores = torch.from_numpy(logits)[None].clone()
        for warper in warpers:
            scores = warper(torch.zeros((1, 1), dtype=torch.long), scores)
        expected = torch.softmax(scores[0].double(), -1).numpy()
        ids, weights = candidates(logits, temperature, wishes.get("top_k"), wishes.get("top_p"), wishes.get("min_p"))
        ours = np.zeros(60)
        ours[ids] = weights / weights.sum()
        np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_a_request_comes_before_the_checkpoint() -> None:
    wishes = GenerationInfo(top_k=1, temperature=5.0, do_sample=True)
    assert draws(generation=wishes)[1] == 1
    assert draws(generation=wishes, top_k=2)[3] > 0.3
    assert make_chooser(AnswerOptions(), wishes) is greedy  # a temperature is the request's alone
    np.testing.assert_allclose(draws(generation=GenerationInfo(min_p=0.7)), [0, 4 / 7, 0, 3 / 7, 0], atol=0.03)
    np.testing.assert_allclose(draws(generation=GenerationInfo(top_p=0.3), top_p=1.0), np.exp(LOGITS), atol=0.03)


@pytest.mark.parametrize(
    "values",
    [
        {"repetition_penalty": 0},
        {"repetition_penalty": float("nan")},
        {"repetition_penalty": "x"},
        {"suppress_tokens": ("x",)},
        {"suppress_tokens": 7},
        {"min_new_tokens": -1},
        {"min_new_tokens": True},
        {"top_k": 0},
        {"top_p": 2},
        {"min_p": -1},
        {"temperature": -1},
        {"ignored": (1,)},
    ],
)
def test_wishes_that_make_no_sense(values: dict[str, Any]) -> None:
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    with pytest.raises(Flaw, match=next(iter(values))):
        from_json(GenerationInfo, {**to_json(GenerationInfo()), **lists}, "")


def test_a_pipeline_obeys_and_says_what_it_does_not() -> None:
    pipeline, session = toy_pipeline()
    plain = pipeline(None, "what ?", max_new_tokens=4)
    assert plain.note == ""
    first = plain.token_ids[0]
    wishes = GenerationInfo(suppress_tokens=(first,), min_new_tokens=3, ignored=("num_beams = 4", "top_h = 0.5"))
    object.__setattr__(pipeline.manifest, "generation", wishes)
    session.answers = [first, 3, 3, 3]
    result = pipeline(None, "what ?", max_new_tokens=4)
    assert result.note == "generation_config asks for num_beams = 4, top_h = 0.5, which is not applied"
    assert first not in result.token_ids
    assert result.token_ids.index(3) == 3  # three tokens before the end of sequence
    chat = pipeline.chat()
    chat._messages = [{"role": "user", "content": "x"}]
    chat._context.token_ids = [2, 2, 2]
    assert chat.ask("what ?", max_new_tokens=1).note.endswith("; " + result.note)
