"""One request, answered and timed phase by phase, with nothing remembered from the one before."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from iwp_export.backends.session import Floats, Session
from iwp_export.errors import RequestError
from iwp_export.latency.workload import Ask
from iwp_export.runtime.generate import Call, Context
from iwp_export.runtime.model import LoadedModel
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.result import AnswerStream, Result
from iwp_export.runtime.sampling import greedy


@dataclass(frozen=True)
class Run:
    """Seconds of one request.

    Attributes:
        phases: by the names of `figures.PHASES` and `figures.SPANS`, and `rest`.
        steps: of each decode step.
        result: the answer.
    """

    phases: Mapping[str, float]
    steps: tuple[float, ...]
    result: Result


def answer(pipeline: Pipeline, ask: Ask, keep: float, new_tokens: int, session: Session | None = None) -> Run:
    """Answer a request with exactly `new_tokens` tokens.

    The features of images are computed each time: `LoadedModel` remembers those of recent images, so each request has
    one of its own. Every phase ends when its results are there: `Session.encode` and `Session.step` return only then.

    Args:
        pipeline: the artefact.
        ask: the request.
        keep: share of the visual tokens that stays.
        new_tokens: length of the answer; it does not end at the end of a sequence.
        session: in place of the pipeline's own.

    Raises:
        RequestError: the request does not fit the model.
    """
    model = LoadedModel(pipeline.manifest, pipeline.processor, session or pipeline.session)
    marks: list[float] = []

    def choose(logits: Floats) -> int:
        token = greedy(logits)
        marks.append(time.perf_counter())
        return token

    start = time.perf_counter()
    call = prepare(model, ask, keep)
    limits = model.limits(new_tokens, stop_at_eos=False)
    limits.check_prompt(call)
    prepared = time.perf_counter() - start
    stream = AnswerStream(model.answer(replace(call, preprocess=prepared), choose, limits))
    for _ in stream:
        pass
    whole = time.perf_counter() - start
    result = stream.result
    if len(result.token_ids) < new_tokens:
        most = pipeline.manifest.decoder.max_positions
        raise RequestError(
            f"after {len(result.token_ids)} tokens of {new_tokens} the model's {most} positions are used up: ask for "
            "fewer, or a shorter prompt",
            options=("new_tokens",),
        )
    timing = result.timing
    parts = {name: getattr(timing, name) for name in ("preprocess", "vision", "prefill", "decode")}
    spans = {"first_token": marks[0] - start, "end_to_end": whole}
    phases = {**parts, "rest": max(0.0, whole - sum(parts.values())), **spans}
    return Run(phases, tuple(after - before for before, after in itertools.pairwise(marks)), result)


def prepare(model: LoadedModel, ask: Ask, keep: float) -> Call:
    """Everything before the graphs: images, chat template, tokens.

    Raises:
        RequestError: the request cannot be read, or does not fit the model.
    """
    prompt = model.processor.ask_once(ask.prompt, ask.images)
    return model.prepare(Context(model.session.new_cache()), prompt.token_ids, prompt.pictures, keep)
