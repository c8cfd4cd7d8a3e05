"""The loop from a prompt to tokens, and the record of what a key/value cache holds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from iwp_export.backends.session import Cache, Features, Floats, Ints, Session, StepInputs, StepOutput
from iwp_export.errors import RequestError
from iwp_export.runtime.request import build_decode
from iwp_export.runtime.result import FinishReason
from iwp_export.runtime.sampling import Chooser


@dataclass
class Context:
    """A cache and what was run into it.

    Attributes:
        cache: the session's.
        token_ids: every token, pruned ones too: its length is the position of the next token.
        pictures: digests of the images among them, in order.
        intact: false while a call runs, and for good if one failed: then the cache and this record may differ.
    """

    cache: Cache
    token_ids: list[int] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)
    intact: bool = True

    def run(
        self, session: Session, inputs: StepInputs, features: Sequence[Features] = (), pictures: Sequence[bytes] = ()
    ) -> StepOutput:
        """Run a call and record it."""
        self.intact = False
        output = session.step(inputs, features, self.cache)
        self.token_ids += inputs.input_ids[0].tolist()
        self.pictures += pictures
        self.intact = True
        return output


@dataclass(frozen=True)
class AnswerLimits:
    """Where generation ends: tokens of this answer, tokens that end any answer, positions of the model."""

    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    max_positions: int

    def __post_init__(self) -> None:
        count = self.max_new_tokens
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise RequestError(f"max_new_tokens must be a whole number of 1 or more, got {count!r}")

    def check_prompt(self, inputs: StepInputs) -> None:
        """Refuse a call that reaches beyond the model's positions.

        Raises:
            RequestError: it does.
        """
        length = int(inputs.position_ids[0, -1]) + 1
        if length > self.max_positions:
            visual = int((inputs.feature_index >= 0).sum())
            raise RequestError(
                f"the prompt has {length} tokens with {visual} new visual ones, the model takes {self.max_positions}: "
                "shorten it, use fewer images, or begin a new conversation"
            )

    def reached(self, token_ids: Sequence[int], position: int) -> FinishReason | None:
        """Why to stop after the last of `token_ids`, which would stand at `position`; None is to go on."""
        if token_ids[-1] in self.eos_token_ids:
            return "stop"
        if len(token_ids) >= self.max_new_tokens:
            return "length"
        return "context" if position >= self.max_positions else None


@dataclass
class GenerationRecord:
    """What generation leaves behind beside its tokens; seconds of the decoder's calls."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    kept_index: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    prefill: float = 0.0
    decode: float = 0.0
    logits: list[Floats] | None = None


def generate(
    session: Session,
    context: Context,
    prompt: StepInputs,
    features: Sequence[Features],
    pictures: Sequence[bytes],
    choose: Chooser,
    limits: AnswerLimits,
    trace: GenerationRecord,
) -> Iterator[int]:
    """Run a prompt and yield generated tokens one by one; the last one is not run into the cache.

    Args:
        session: the backend.
        context: the cache to go on from.
        prompt: the new tokens.
        features, pictures: the new images' features and digests.
        choose: from logits to the next token.
        limits: where to stop.
        trace: filled on the way.
    """
    start = time.perf_counter()
    output = context.run(session, prompt, features, pictures)
    token = choose(output.logits)
    trace.prefill += time.perf_counter() - start
    trace.kept_index = output.kept_index
    while True:
        trace.token_ids.append(token)
        if trace.logits is not None:
            trace.logits.append(output.logits)
        reason = limits.reached(trace.token_ids, len(context.token_ids))
        yield token
        if reason is not None:
            trace.finish_reason = reason
            return
        start = time.perf_counter()
        output = context.run(session, build_decode(token, len(context.token_ids)))
        token = choose(output.logits)
        trace.decode += time.perf_counter() - start
