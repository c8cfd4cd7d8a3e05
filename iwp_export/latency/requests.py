"""What a bench asks, and one request: timed phase by phase, or run to prove that tokens were dropped."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np

from iwp_export.backends.session import Array, Floats
from iwp_export.bundle.manifest import Manifest
from iwp_export.errors import DataError, RequestError
from iwp_export.latency.figures import Dropped
from iwp_export.questions import SHIPPED, DataSet, Question, read_questions
from iwp_export.runtime.generate import TEXT, Call, Context, build_decode
from iwp_export.runtime.images import ImageSource
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.result import AnswerStream, Result
from iwp_export.runtime.sampling import greedy

PROMPT = "What is in the picture?"
CAMERA = (480, 640, 3)
"""Height and width of a camera's picture, for models that ship no samples."""
CLOSE = 0.02
"""Of the largest: between the keys of one token in two runs. Shapes differ, and with them the order of sums, in
half precision too; the keys of different tokens differ by far more."""


def choose_questions(
    manifest: Manifest, images: Sequence[ImageSource], prompt: str | None, data: Path | None, limit: int
) -> DataSet:
    """The requests of a bench, which are asked in turn, and in words where they are from.

    Args:
        manifest: of a model that may have samples of its own.
        images, prompt: one request.
        data, limit: a file of questions, see `iwp_export.questions`, of which the first so many are asked.

    Raises:
        DataError: a file and images or a prompt are given, or the file cannot be read.
    """
    if data is not None and (images or prompt is not None):
        raise DataError("questions come from a file or are images and a prompt, not both", options=("data", "images"))
    file, name = data, "" if data is None else f"questions of {data.name}"
    if data is None and not images and prompt is None:
        file, name = SHIPPED.get(manifest.model.name, {}).get("samples"), f"samples of {manifest.model.name}"
    if file is not None:
        asked = tuple(islice(read_questions(file), limit))
        return DataSet(f"the first {len(asked)} {name}", asked)
    words, source = PROMPT if prompt is None else prompt, f"{len(images)} image(s) and a prompt as given"
    if not images:
        images = [np.random.default_rng(0).integers(0, 256, CAMERA, np.uint8)]
        source = f"a synthetic image of {CAMERA[1]} x {CAMERA[0]} pixels, noise; none was given"
    return DataSet(source, (Question(cast(tuple[Path, ...], tuple(images)), words),))  # pixels are asked as files are


@dataclass(frozen=True)
class Run:
    """One request.

    Attributes:
        times: seconds by the names of `figures.PHASES` and `figures.SPANS`.
        steps: seconds of each decode step.
        result: the answer.
    """

    times: Mapping[str, float]
    steps: tuple[float, ...]
    result: Result


def answer(pipeline: Pipeline, question: Question, keep: float, new_tokens: int) -> Run:
    """Answer a request with exactly `new_tokens` tokens, with nothing remembered from the one before.

    The features of images are computed each time: `Pipeline` remembers those of recent images, so each request has
    one of its own. Every phase ends when its results are there: `Session.encode` and `Session.step` return only then.

    Raises:
        RequestError: the request does not fit the model.
    """
    model = Pipeline(pipeline.manifest, pipeline.processor, pipeline.session)
    marks: list[float] = []

    def choose(logits: Floats) -> int:
        token = greedy(logits)
        marks.append(time.perf_counter())
        return token

    start = time.perf_counter()
    call = _prepare(model, question, keep)
    limits = model.limits(new_tokens, stop_at_eos=False)
    prepared = time.perf_counter() - start
    result = AnswerStream(model.answer(replace(call, preprocess=prepared), choose, limits)).read()
    whole = time.perf_counter() - start
    if len(result.token_ids) < new_tokens:
        most = pipeline.manifest.decoder.max_positions
        raise RequestError(
            f"after {len(result.token_ids)} tokens of {new_tokens} the model's {most} positions are used up: ask for "
            "fewer, or a shorter prompt",
            options=("new_tokens",),
        )
    times = {name: getattr(result.timing, name) for name in ("preprocess", "vision", "prefill", "decode")}
    times |= {"rest": max(0.0, whole - sum(times.values())), "first_token": marks[0] - start, "end_to_end": whole}
    return Run(times, tuple(after - before for before, after in itertools.pairwise(marks)), result)


def _prepare(model: Pipeline, question: Question, keep: float) -> Call:
    """Everything before the graphs: images, chat template, tokens."""
    prompt = model.processor.ask_once(question.prompt, question.images)
    return model.prepare(Context(model.session.new_cache()), prompt.token_ids, prompt.pictures, keep)


def prove_dropped(pipeline: Pipeline, question: Question, keep: float) -> tuple[Dropped, Dropped]:
    """Run a prompt and a decode step at `keep` and at 1, and read the caches back.

    Keys and values of the pruning layer must also be those that the unpruned cache holds of the kept tokens: that layer
    projects all tokens, and then drops some.

    Returns:
        The pruned side and the unpruned one.
    """
    layer = pipeline.manifest.pruning.layer
    pruned, kept, rows = _fill(pipeline, question, keep, "pruned")
    unpruned, _, all_rows = _fill(pipeline, question, 1.0, "unpruned")
    for name, left, whole in zip(("key", "value"), rows, all_rows, strict=True):
        found, wanted = left[:, : len(kept)], whole[:, kept]
        if found.shape != wanted.shape:
            flaw = f"layer {layer} holds {left.shape[1]} {name}s, {len(kept)} tokens were kept"
            return replace(pruned, flaw=flaw), unpruned
        away = np.abs(found - wanted).max(axis=(0, 2), initial=0.0)
        worst = int(np.argmax(away))
        if not away[worst] <= CLOSE * float(np.abs(wanted).max()):  # NaN is wrong too
            flaw = f"layer {layer} holds at row {worst} another {name} than that of token {int(kept[worst])}"
            return replace(pruned, flaw=flaw), unpruned
    return pruned, unpruned


def _fill(
    pipeline: Pipeline, question: Question, keep: float, side: str
) -> tuple[Dropped, Array, tuple[Floats, Floats]]:
    """The lengths of a cache after a prompt and a decode step, the kept tokens, and the pruning layer's rows."""
    session, pruning_layer = pipeline.session, pipeline.manifest.pruning.layer
    model = Pipeline(pipeline.manifest, pipeline.processor, session)
    call = _prepare(model, question, keep)
    output = call.run(session, [model.features(picture) for picture in call.pictures])
    cache = call.context.cache
    positions, after = model.family.positions(TEXT, (), call.next_position)
    Call(call.context, build_decode(greedy(output.logits), positions), next_position=after).run(session)
    visual, prompt = sum(picture.num_tokens for picture in call.pictures), call.inputs.input_ids.size
    # counted here, not by `num_keep`, whose mistakes would otherwise be on both sides
    left = prompt - visual + min(visual, max(1, math.ceil(keep * visual - 1e-9))) if visual else prompt
    layers = range(pipeline.manifest.decoder.layers)
    expected = tuple(prompt + 1 if layer < pruning_layer else left + 1 for layer in layers)
    found = tuple(session.read_cache(cache, layer)[0].shape[1] for layer in layers)
    return Dropped(side, expected, found), output.kept_index, session.read_cache(cache, pruning_layer)
