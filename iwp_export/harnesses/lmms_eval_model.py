"""A bundle or an engine as a chat model of lmms-eval.

    lmms-eval --model iwp_export --model_args path=x.bundle,keep=0.3 --tasks textvqa_val

An answer is what `iwp-export run` gives: the bundle's own chat template, its image processor, and greedy decoding
unless the task asks for a temperature.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages

from iwp_export.errors import IwpError, RequestError
from iwp_export.progress import progress
from iwp_export.pruning.settings import check_keep
from iwp_export.runtime.images import ImageSource
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.result import Result
from iwp_export.runtime.sampling import AnswerOptions, Chooser, greedy, make_chooser
from iwp_export.runtime.template import Message

MAX_NEW_TOKENS = 1024
"""Of an answer for which the task does not say."""
OPTIONS = {"until", "max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "seed", "num_beams"}
"""What a task's generation_kwargs may hold; values that are None count as not given."""
IGNORED = {"image_aspect_ratio"}
"""For LLaVA's own code; here the artefact's image processor decides."""


class IwpExport(lmms):
    """The model. One request at a time, in one process.

    Args:
        path: a bundle's folder, or NAME.plan.
        keep: fraction of the visual tokens that stays, 0.0001 to 1; None is the exported one.
        provider, threads: see `Pipeline.open`.
        max_new_tokens: length of an answer at most, where the task does not say.
        seed: of tasks that draw tokens and do not say it.
        batch_size, max_batch_size: lmms-eval's; only 1 is possible.
        device: lmms-eval's; `provider` takes its place.

    Raises:
        IwpError: the artefact cannot be opened, or an argument is not possible.
    """

    is_simple = False

    def __init__(
        self,
        path: str,
        keep: float | None = None,
        provider: str = "cpu",
        threads: int | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        seed: int = 0,
        batch_size: int | str = 1,
        max_batch_size: int | str | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if str(batch_size) != "1" or str(max_batch_size) not in ("None", "1"):
            raise RequestError(f"iwp_export answers one request at a time: batch_size must be 1, got {batch_size}")
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise RequestError("iwp_export runs in one process: start lmms-eval without accelerate launch or torchrun")
        if device is not None:
            raise RequestError(f"device={device} has no effect here: say provider=cuda, or another, in model_args")
        if keep is not None:
            check_keep(keep)
        self._pipeline = Pipeline.open(str(path), provider=provider, threads=threads)
        self._keep, self._max_new_tokens, self._seed = keep, max_new_tokens, seed

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer requests in their order. Their arguments: context, messages of a document, options, and the document.

        Raises:
            IwpError: a request cannot be served; the message names its task and document.
        """
        answers, results = [], []
        start = time.perf_counter()
        with progress("Answering", len(requests)) as advance:
            for request in requests:
                context, to_messages, options, document, task, split = request.args
                try:
                    messages = ChatMessages(messages=to_messages(self.task_dict[task][split][document]))
                    result = self._answer(*converted(messages), options)
                except IwpError as error:
                    raise type(error)(f"task {task}, document {document}: {error}") from error
                text = cut(result.text, options.get("until"))
                answers.append(GenerationResult(text, TokenCounts(result.prompt_tokens, len(result.token_ids))))
                self.cache_hook.add_partial("generate_until", (context, options), text)
                results.append(result)
                advance(1)
        self._log(results, time.perf_counter() - start)
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not supported."""
        raise NotImplementedError("iwp_export generates answers; tasks of the type loglikelihood are not supported")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported."""
        raise NotImplementedError("iwp_export answers in one round; multi-round tasks are not supported")

    def _answer(self, messages: list[Message], images: list[ImageSource], options: Mapping[str, Any]) -> Result:
        """Like a call of the pipeline, but for a whole conversation, with images in any place of it."""
        choose, length = self._chooser(options), options.get("max_new_tokens") or self._max_new_tokens
        asked = self._pipeline.processor.ask(messages, images)
        return self._pipeline.generate_ids(
            asked.token_ids, asked.pictures, max_new_tokens=length, keep=self._keep, choose=choose
        )

    def _chooser(self, options: Mapping[str, Any]) -> Chooser:
        """How a task wants tokens to be chosen.

        Raises:
            RequestError: in a way that is not supported.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if unknown := given.keys() - OPTIONS - IGNORED:
            raise RequestError(f"the generation_kwargs {', '.join(sorted(unknown))} are not supported")
        if given.get("num_beams", 1) != 1:
            raise RequestError(f"num_beams must be 1, got {given['num_beams']}: there is no beam search")
        temperature = given.get("temperature", 0)
        if not temperature or given.get("do_sample") is False:
            return greedy
        seed = given.get("seed", self._seed)
        return make_chooser(AnswerOptions(0, temperature, given.get("top_k"), given.get("top_p"), seed))

    def _log(self, results: Sequence[Result], seconds: float) -> None:
        """Throughput and visual tokens, which lmms-eval writes beside the scores."""
        tokens, count = sum(len(result.token_ids) for result in results), max(len(results), 1)
        names = ("visual_tokens", "visual_tokens_kept")
        means = {name: sum(getattr(result, name) for result in results) / count for name in names}
        log_metrics(seconds, tokens, tokens / seconds, means)


def converted(messages: ChatMessages) -> tuple[list[Message], list[ImageSource]]:
    """Messages as chat templates take them, and their images in order.

    Raises:
        RequestError: there is video or audio among them.
    """
    parts = [part for message in messages.messages for part in message.content]
    if other := {part.type for part in parts} - {"text", "image"}:
        raise RequestError(f"a message has {min(other)}: only images and text are supported")

    def plain(part: Any) -> dict[str, str]:
        return {"type": "text", "text": part.text} if part.type == "text" else {"type": "image"}

    turns: list[Message] = [
        {"role": each.role, "content": [plain(part) for part in each.content]} for each in messages.messages
    ]
    return turns, [part.url for part in parts if part.type == "image"]


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """The text before the first of the strings with which an answer ends."""
    for end in [until] if isinstance(until, str) else until or ():
        text = text.split(end)[0] if end else text
    return text
