"""Measures a tiny-llava checkpoint: `python -m calibration.tiny_llava.evaluate FOLDER`."""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from calibration.tiny_llava import HELDOUT
from calibration.tiny_llava.checkpoint import NUM_LAYERS, NUM_VISUAL
from calibration.tiny_llava.reader import IMAGE_START, TEXT_START, embed_prompt, run_layers
from calibration.tiny_llava.tower import patch_features
from calibration.tiny_llava.vocabulary import WORDS
from iwp_export.exporter.live import open_live
from iwp_export.exporter.plan import plan_export
from iwp_export.exporter.settings_source import PAPER
from iwp_export.questions import Question, read_questions
from iwp_export.scorer import Scorer
from iwp_export.settings import Device

BATCH = 100
PRUNING_LAYER = 4
RANDOM_KEEP = 0.11
RANDOM_SEEDS = (0, 1, 2, 3, 4)


def load_checkpoint(folder: Path, dtype: torch.dtype) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The stock model and its processor."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    return model, LlavaProcessor.from_pretrained(folder, local_files_only=True)


def prepare(
    processor: LlavaProcessor, questions: Sequence[Question], device: str = "cpu"
) -> Iterator[dict[str, torch.Tensor]]:
    """Model inputs of the questions, batch by batch, through the chat template as a user would write it."""
    for start in range(0, len(questions), BATCH):
        chats = [_chat(question) for question in questions[start : start + BATCH]]
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = processor.apply_chat_template(chats, **options)
        yield {name: value.to(device) for name, value in inputs.items()}


def generated_answers(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, questions: Sequence[Question], device: str = "cpu"
) -> list[str]:
    """What the stock model generates; an answer that does not end in <eos> keeps its further words."""
    texts: list[str] = []
    for inputs in prepare(processor, questions, device):
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        output = model.generate(**inputs)
        texts += processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def answers_with_kept(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    questions: Sequence[Question],
    kept: torch.Tensor,
    layer: int,
    device: str = "cpu",
) -> list[str]:
    """The first word of each answer when only some visual tokens go on from a layer on.

    Args:
        model: the stock model.
        processor: its processor.
        questions: N questions.
        kept: which visual tokens `layer` and the layers after it see, [N, 64] (bool).
        layer: the first layer that sees only them.
        device: where the model is.
    """
    words: list[str] = []
    for inputs, chosen in zip(prepare(processor, questions, device), kept.to(device).split(BATCH), strict=True):
        text = inputs["input_ids"][:, TEXT_START:]
        with torch.no_grad():
            embeddings = embed_prompt(model, patch_features(model, inputs["pixel_values"].to(model.dtype)), text)
            size, length = embeddings.shape[:2]
            causal = torch.ones(length, length, dtype=torch.bool, device=device).tril().expand(size, 1, -1, -1)
            pruned = causal.clone()
            pruned[..., IMAGE_START:TEXT_START] &= chosen[:, None, None]
            masks = [causal if i < layer else pruned for i in range(NUM_LAYERS)]
            positions = torch.arange(length, device=device)[None]
            hidden = run_layers(model.model.language_model, embeddings, positions, masks)
            words += [WORDS[i] for i in model.lm_head(hidden[:, -1]).argmax(-1).tolist()]
    return words


def shares(questions: Sequence[Question], right: Sequence[bool]) -> dict[str, float]:
    """Share of right answers by kind of question, in the order in which the kinds come, and of all."""
    kinds = dict.fromkeys(question.kind for question in questions if question.kind is not None)
    pairs = list(zip(questions, right, strict=True))
    found = {kind: [holds for question, holds in pairs if question.kind == kind] for kind in kinds}
    return {kind: round(sum(each) / len(each), 4) for kind, each in {**found, "all": list(right)}.items()}


def accuracy(answers: Sequence[str], questions: Sequence[Question]) -> dict[str, float]:
    """Share of right answers for each kind of question and over all."""
    return shares(questions, [answer == question.answer for answer, question in zip(answers, questions, strict=True)])


def layer_curve(folder: Path, questions: Sequence[Question], device: Device = "cpu") -> dict[str, dict[str, float]]:
    """Accuracy when no visual token goes on from layer l on, for every l."""
    session, manifest, processor = open_live(plan_export(str(folder), recipe=PAPER), "float32", device)
    layers = range(NUM_LAYERS)
    scorer = Scorer(session, manifest, processor, layers)
    settings = [replace(manifest.pruning, layer=layer) for layer in layers]
    asked = map(scorer.prepare, questions)
    right = [[bool(scorer.score(each, one, True, blind=True).right) for one in settings] for each in asked]
    return {str(layer): shares(questions, [each[layer] for each in right]) for layer in layers}


def random_selection(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, questions: Sequence[Question], device: str = "cpu"
) -> dict[str, float]:
    """Accuracy with a random `RANDOM_KEEP` of the visual tokens from layer 4 on, mean over `RANDOM_SEEDS`."""
    number = math.ceil(RANDOM_KEEP * NUM_VISUAL)
    results = []
    for seed in RANDOM_SEEDS:
        order = torch.rand(len(questions), NUM_VISUAL, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
        words = answers_with_kept(model, processor, questions, order < number, PRUNING_LAYER, device)
        results.append(accuracy(words, questions))
    return {name: round(float(np.mean([result[name] for result in results])), 4) for name in results[0]}


def measure(folder: Path, device: Device = "cpu") -> dict[str, object]:
    """All figures of a checkpoint on the held-out questions."""
    questions = list(read_questions(HELDOUT))
    model, processor = load_checkpoint(folder, torch.float32)
    model.to(device)
    generated = accuracy(generated_answers(model, processor, questions, device), questions)
    half = model.to(torch.float16)
    in_half = accuracy(generated_answers(half, processor, questions, device), questions)
    model.to(torch.float32)
    return {
        "questions": len(questions),
        "generated_float32_arithmetic": generated,
        "generated_float16_arithmetic": in_half,
        "no_visual_tokens_from_layer": layer_curve(folder, questions, device),
        f"random_{RANDOM_KEEP}_at_layer_{PRUNING_LAYER}": random_selection(model, processor, questions, device),
    }


def _chat(question: Question) -> list[dict[str, object]]:
    image = {"type": "image", "image": Image.open(question.images[0]).convert("RGB")}
    return [{"role": "user", "content": [image, {"type": "text", "text": question.prompt}]}]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="checkpoint folder")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.folder, arguments.device), indent=1))


if __name__ == "__main__":
    main()
