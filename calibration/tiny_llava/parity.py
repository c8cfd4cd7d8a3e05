"""Shows that an exported bundle equals its checkpoint on the held-out questions.

    python -m calibration.tiny_llava.parity tiny-llava.bundle -o docs/benchmarks/parity_tiny_llava.json

At keep 1 the bundle's answers are compared with transformers' `generate`, token for token, and its logits with the
model's. At smaller budgets its kept tokens, answers and logits are compared with the torch reference's. Exits with 1
if something differs by more than rounding.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import iwp_export
from calibration.tiny_llava.heldout import Question, load
from iwp_export.backends.torch.session import TorchSession
from iwp_export.errors import IwpError
from iwp_export.export.checkpoint import open_checkpoint
from iwp_export.pruning.reference import selection_gap
from iwp_export.pruning.torch_select import Select
from iwp_export.runtime.model import LoadedModel
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.processor import user_message
from iwp_export.runtime.result import Result
from iwp_export.validate.rivals import Method

KEEPS = (0.5, 0.353, 0.222, 0.111)
MAX_NEW_TOKENS = 4
LOGITS_TOLERANCE = 1e-3
TIE = 1e-4
"""Priorities lie in [0, 1]; two that differ by less than this are one within float32 rounding of their sums."""


def encode(pipeline: Pipeline, question: Question) -> tuple[Any, Any]:
    """Token ids [S] and pixels [1, 3, h, w] of a question, by the bundle's own processor."""
    text = pipeline.processor.render([user_message(question.question, 1)])
    return pipeline.processor.token_ids(text, 1), pipeline.processor.image(question.image).pixel_values


def answer(pipeline: Pipeline, question: Question, keep: float) -> Result:
    token_ids, pixels = encode(pipeline, question)
    return pipeline.generate_ids(token_ids, pixels, max_new_tokens=MAX_NEW_TOKENS, keep=keep, return_logits=True)


def compare_with_generate(pipeline: Pipeline, model: Any, questions: Sequence[Question]) -> dict[str, Any]:
    """At keep 1: greedy tokens of transformers' `generate`, and the largest difference of its logits."""
    different, gap = 0, 0.0
    for question in questions:
        token_ids, pixels = encode(pipeline, question)
        ours = answer(pipeline, question, 1.0)
        inputs = {"input_ids": torch.from_numpy(token_ids)[None], "pixel_values": torch.from_numpy(pixels)}
        output = model.generate(
            **inputs,
            attention_mask=torch.ones_like(inputs["input_ids"]),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        theirs = output.sequences[0, len(token_ids) :].tolist()
        different += theirs != ours.token_ids
        pairs = zip(output.logits, ours.logits or [], strict=False)
        gap = max(gap, *(float(np.abs(a[0].numpy() - b).max()) for a, b in pairs))
    return {"questions": len(questions), "answers_that_differ": different, "max_logits_difference": gap}


class RecordedMethod(Method):
    """IWP in torch that remembers what its last choice was made from: the oracle's inputs."""

    inputs: list[Any]

    def select(self, features: torch.Tensor) -> Select:
        run = super().select(features)

        def record(*tensors: torch.Tensor) -> torch.Tensor:
            importance, key, value, visual = (tensor[0] for tensor in tensors[:4])
            if visual.any():
                arrays = (importance[visual], key[:, visual], value[:, visual])
                object.__setattr__(self, "inputs", [array.float().numpy() for array in arrays])
            return run(*tensors)

        return record


def compare_with_reference(
    pipeline: Pipeline, session: TorchSession, questions: Sequence[Question], keep: float
) -> dict[str, Any]:
    """At one budget: kept tokens, greedy tokens and logits of the torch reference."""
    method = RecordedMethod(pipeline.manifest.pruning)
    choosing = session.choosing(method.settings, method.select)
    reference = Pipeline(LoadedModel(pipeline.manifest, pipeline.processor, choosing))
    report = {"keep": keep, "questions": len(questions), "choices_that_differ": 0, "answers_that_differ": 0}
    gap, tie_gap = 0.0, 0.0
    for question in questions:
        ours, theirs = answer(pipeline, question, keep), answer(reference, question, keep)
        report["answers_that_differ"] += ours.token_ids != theirs.token_ids
        if ours.kept != theirs.kept:
            report["choices_that_differ"] += 1
            scoring: Any = method.settings.selection()
            tie_gap = max(tie_gap, selection_gap(ours.kept[0], *method.inputs, **scoring))
        else:
            gap = max(gap, float(np.abs(ours.logits[0] - theirs.logits[0]).max()))  # type: ignore[index]
    return {**report, "max_logits_difference": gap, "max_priority_gap_of_differing_choices": tie_gap}


def run(artefact: Path, limit: int, provider: str | None = None) -> dict[str, Any]:
    """All comparisons on the first `limit` held-out questions.

    Args:
        artefact: a bundle or an engine of tiny-llava.
        provider: of a bundle, see `iwp_export.load`.
    """
    options = {} if provider is None else {"provider": provider}
    pipeline = iwp_export.load(str(artefact), **options)
    manifest = pipeline.manifest
    checkpoint = open_checkpoint(manifest.model.source)
    session = TorchSession(checkpoint.load_model(manifest.decoder.dtype), checkpoint.family, manifest.pruning)
    questions = load(limit=limit)
    return {
        "command": " ".join(
            ["python -m calibration.tiny_llava.parity", artefact.name, *(f"--{k} {v}" for k, v in options.items())]
        ),
        "provider": pipeline.provider,
        "dtype": manifest.decoder.dtype,
        "pruning": manifest.pruning.to_dict(),
        "keep 1 against transformers' generate": compare_with_generate(pipeline, session.model, questions),
        "against the torch reference": [compare_with_reference(pipeline, session, questions, k) for k in KEEPS],
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "transformers", "onnxruntime", "numpy")
        },
    }


def failures(report: dict[str, Any]) -> list[str]:
    """What in a report is more than rounding, a line each."""
    found = []
    whole = report["keep 1 against transformers' generate"]
    for entry in (whole, *report["against the torch reference"]):
        at = f"keep {entry.get('keep', 1)}"
        if entry["answers_that_differ"]:
            found.append(f"{at}: {entry['answers_that_differ']} of {entry['questions']} answers differ")
        if entry["max_logits_difference"] > LOGITS_TOLERANCE:
            found.append(f"{at}: logits differ by {entry['max_logits_difference']:.1e}, more than {LOGITS_TOLERANCE}")
        if entry.get("max_priority_gap_of_differing_choices", 0) > TIE:
            found.append(f"{at}: a choice differs that is no tie")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artefact", type=Path, help="a bundle or an engine (NAME.plan) of tiny-llava, float32")
    parser.add_argument("--provider", help="what runs a bundle: cpu (the default), cuda, ...")
    parser.add_argument("--questions", type=int, default=200, help="how many (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    try:
        report = run(args.artefact, args.questions, args.provider)
    except IwpError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(report, indent=2))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=2) + "\n")
    for line in failures(report):
        print(f"FAILED {line}", file=sys.stderr)
    return 1 if failures(report) else 0


if __name__ == "__main__":
    sys.exit(main())
