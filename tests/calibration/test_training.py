"""Each training stage takes a step; its sequences and its decoder loop are those of the stock model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from calibration.tiny_llava.batches import Batch, draw_batch
from calibration.tiny_llava.checkpoint import NUM_LAYERS, PROMPT_HEAD, build_model, build_processor
from calibration.tiny_llava.reader import (
    TEXT_START,
    Layout,
    build_layout,
    embed_prompt,
    initialise_reader,
    run_layers,
    turn_tokens,
)
from calibration.tiny_llava.scenes import Pools, build_pools
from calibration.tiny_llava.tower import align_projector, dense_head, patch_accuracy, patch_features, train_tower
from calibration.tiny_llava.train import Trainee, train_reader
from calibration.tiny_llava.vocabulary import IMAGE, WORD_ID, WORDS


@pytest.fixture(scope="module")
def pools() -> Pools:
    return build_pools("train", seed=3, variants=1, backgrounds=8)


@pytest.fixture(scope="module")
def batch(pools: Pools) -> Batch:
    return draw_batch(pools, np.random.default_rng(0), size=2, num_questions=3, device="cpu")


@pytest.fixture
def trainee(tmp_path: Path) -> Trainee:
    torch.manual_seed(0)
    return Trainee(build_model(), dense_head(), tmp_path)


def _changed(model: nn.Module, before: dict[str, torch.Tensor], part: str) -> bool:
    return any(part in name and not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_tower_stage_changes_the_tower_alone(trainee: Trainee, pools: Pools, batch: Batch) -> None:
    before = _copy(trainee.model)
    train_tower(trainee.model, trainee.head, pools, 1, "cpu", trainee.report, batch_size=2)
    assert _changed(trainee.model, before, "vision_tower")
    assert not _changed(trainee.model, before, "language_model")
    assert all(torch.isfinite(value).all() for value in trainee.model.state_dict().values())
    assert set(patch_accuracy(trainee.model, trainee.head, batch)) == {"value", "colour"}


def test_alignment_changes_the_projector_alone(trainee: Trainee, pools: Pools) -> None:
    before = _copy(trainee.model)
    align_projector(trainee.model, pools, 1, "cpu", trainee.report, batch_size=2)
    assert _changed(trainee.model, before, "multi_modal_projector")
    assert not _changed(trainee.model, before, "vision_tower")
    assert not _changed(trainee.model, before, "language_model")
    assert all(torch.isfinite(value).all() for value in trainee.model.state_dict().values())


def test_reader_stage_unfreezes_the_tower_late(trainee: Trainee, pools: Pools) -> None:
    initialise_reader(trainee.model)
    before = _copy(trainee.model)
    train_reader(trainee, pools, 1, "cpu", batch_size=2)
    assert _changed(trainee.model, before, "language_model")
    assert not _changed(trainee.model, before, "vision_tower")
    train_reader(trainee, pools, 3, "cpu", batch_size=2)  # its third step is in the last third
    assert _changed(trainee.model, before, "vision_tower")
    assert all(torch.isfinite(value).all() for value in trainee.model.state_dict().values())


def test_saved_training_goes_on_where_it_stopped(trainee: Trainee, tmp_path: Path) -> None:
    trainee.report("tower", {"loss": 1.0})
    trainee.save("tower", step=5)
    other = Trainee(build_model(), dense_head(), tmp_path)
    state = other.load("tower")
    assert state is not None
    assert state["step"] == 5
    assert other.log == trainee.log
    assert all(
        torch.equal(a, b) for a, b in zip(_copy(other.model).values(), _copy(trainee.model).values(), strict=True)
    )
    assert other.load("reader") is None


def test_a_training_conversation_is_what_the_chat_template_writes(batch: Batch) -> None:
    messages: list[dict[str, object]] = []
    for turn in range(3):
        text = " ".join(WORDS[i] for i in batch.questions[0, turn].tolist())
        image = [{"type": "image"}] if turn == 0 else []
        messages.append({"role": "user", "content": [*image, {"type": "text", "text": text}]})
        answer = WORDS[int(batch.answers[0, turn])]
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    prompt = build_processor().apply_chat_template(messages)
    ids = build_processor().tokenizer(prompt)["input_ids"]
    text_tokens = turn_tokens(build_layout("conversation", 3), batch.questions, batch.answers)[0].tolist()
    assert [*ids, WORD_ID["user"]] == [*PROMPT_HEAD, WORD_ID[IMAGE], *text_tokens]


def test_separate_questions_do_not_see_each_other(batch: Batch) -> None:
    torch.manual_seed(1)
    model = build_model().eval()
    initialise_reader(model)
    layout, single = build_layout("separate", 3), build_layout("separate", 1)
    features = patch_features(model, batch.pixels)

    def last(layout: Layout, questions: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        embeddings = embed_prompt(model, features, turn_tokens(layout, questions, answers))
        masks = [layout.causal] * NUM_LAYERS
        return run_layers(model.model.language_model, embeddings, layout.positions, masks)[:, layout.asking]

    together = last(layout, batch.questions, batch.answers)
    for i in range(3):
        alone = last(single, batch.questions[:, i : i + 1], batch.answers[:, i : i + 1])
        torch.testing.assert_close(together[:, i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_blind_text_does_not_see_the_image() -> None:
    layout = build_layout("conversation", 2)
    assert not layout.blind[0, 0, TEXT_START:, len(PROMPT_HEAD) : TEXT_START].any()
    assert torch.equal(layout.blind[..., :TEXT_START, :], layout.causal[..., :TEXT_START, :])


def test_the_decoder_loop_equals_the_stock_model(batch: Batch) -> None:
    torch.manual_seed(1)
    model = build_model().eval()
    initialise_reader(model)
    layout = build_layout("conversation", 3)
    text = turn_tokens(layout, batch.questions, batch.answers)
    embeddings = embed_prompt(model, patch_features(model, batch.pixels), text)
    hidden = run_layers(model.model.language_model, embeddings, layout.positions, [layout.causal] * NUM_LAYERS)
    prompt = torch.tensor([[*PROMPT_HEAD, *[WORD_ID[IMAGE]] * 64]]).expand(len(text), -1)
    ids = torch.cat([prompt, text], dim=1)
    stock = model(input_ids=ids, pixel_values=batch.pixels, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(model.lm_head(hidden), stock, rtol=1e-4, atol=1e-4)
