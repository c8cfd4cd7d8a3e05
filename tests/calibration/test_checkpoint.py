"""The shipped tiny-llava loads with stock transformers, answers, and needs its visual tokens at layer 4."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from calibration.tiny_llava import HELDOUT
from calibration.tiny_llava.checkpoint import build_config
from calibration.tiny_llava.evaluate import (
    PRUNING_LAYER,
    accuracy,
    answers_with_kept,
    generated_answers,
    load_checkpoint,
    prepare,
)
from calibration.tiny_llava.vocabulary import WORD_ID
from iwp_export.questions import Question, read_questions

Loaded = tuple[LlavaForConditionalGeneration, LlavaProcessor]
FOLDER = Path(__file__).parents[2] / "iwp_export" / "assets" / "tiny_llava"


def heldout(limit: int) -> list[Question]:
    return list(islice(read_questions(HELDOUT), limit))


@pytest.fixture(scope="module")
def checkpoint() -> Loaded:
    return load_checkpoint(FOLDER, torch.float32)


def test_structure_is_the_recipes(checkpoint: Loaded) -> None:
    model, _ = checkpoint
    ours = build_config()
    for name in ("image_token_id", "image_seq_length", "vision_feature_layer", "vision_feature_select_strategy"):
        assert getattr(model.config, name) == getattr(ours, name)
    assert LlavaForConditionalGeneration.from_pretrained(FOLDER).dtype == torch.float16
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 5e6


def test_answers_held_out_questions(checkpoint: Loaded) -> None:
    model, processor = checkpoint
    questions = heldout(30)
    assert accuracy(generated_answers(model, processor, questions), questions)["all"] >= 0.9


def test_an_answer_is_one_word_and_the_end(checkpoint: Loaded) -> None:
    model, processor = checkpoint
    inputs = next(prepare(processor, heldout(30)))
    output = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    assert output.shape == (30, 2)
    assert (output[:, 1] == WORD_ID["<eos>"]).all()


def test_visual_tokens_matter_at_the_pruning_layer(checkpoint: Loaded) -> None:
    model, processor = checkpoint
    questions = heldout(30)
    every, none = torch.ones(30, 64, dtype=torch.bool), torch.zeros(30, 64, dtype=torch.bool)
    seeing = answers_with_kept(model, processor, questions, every, PRUNING_LAYER)
    assert seeing == generated_answers(model, processor, questions)
    blind = answers_with_kept(model, processor, questions, none, PRUNING_LAYER)
    assert accuracy(seeing, questions)["all"] - accuracy(blind, questions)["all"] >= 0.3


def test_answers_a_second_turn(checkpoint: Loaded) -> None:
    model, _ = checkpoint
    processor = AutoProcessor.from_pretrained(FOLDER)
    first, second = heldout(2)
    messages = [
        {"role": "user", "content": [{"type": "text", "text": first.prompt}, {"type": "image"}]},
        {"role": "assistant", "content": first.answer},
        {"role": "user", "content": "What COLOUR is the 8?"},
    ]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=prompt, images=Image.open(first.images[0]), return_tensors="pt")
    output = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    assert second.prompt == "what colour is the 8 ?"
    assert processor.decode(output, skip_special_tokens=True).strip() == second.answer
