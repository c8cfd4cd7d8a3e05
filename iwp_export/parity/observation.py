"""What a run shows of a sample, stage by stage and small enough for a file, and the interface of what shows it.

A stage is compared by its rows: what one token has somewhere, its feature, its state at a layer's input, its key or its
value of all heads. A row is kept as its length and eight projections on fixed random signs, so that the distance of two
sketches is the distance of the rows, but for a factor whose square has mean 1 (Johnson and Lindenstrauss): between 0.4
and 1.6 for 98 % of rows. A full cache of a 7B model has hundreds of MB, its sketch about one.
"""

from __future__ import annotations

import hashlib
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from iwp_export.backends.session import Array, Cache, Features, Floats, Inside, Ints, Session, StepInputs, StepOutput
from iwp_export.bundle.schema import CONTROL
from iwp_export.errors import DataError, RequestError, os_reason
from iwp_export.models.common.family import Picture
from iwp_export.parity.figures import Identity, Stage
from iwp_export.pruning.reference import pair_likeness
from iwp_export.questions import Question
from iwp_export.runtime.generate import Context
from iwp_export.runtime.images import load_image
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.processor import Prompt
from iwp_export.runtime.result import AnswerStream

PROJECTIONS = 8
SEED = b"iwp-export parity, version 1"
"""Recordings hold what it leads to: another seed is another format."""
LAST = 1 << 20
"""A layer beyond all."""
Kind = Literal["question", "seen", "two calls", "long"]
"""Of a sample: asked at every keep ratio; made to a prompt and pixels, and not run; asked in two calls, as a
conversation's turns are; long, and asked at keep 1 alone."""
Look = Literal["nothing", "choice", "layers"]
"""Whether to look inside of calls: at what visual tokens are chosen by, or also at the states between layers."""


def sketch(tensor: Array) -> Floats:
    """Sketch the last dimension of [..., w]: float32 [n, 9], each row's length and its projections."""
    rows = tensor.reshape(-1, tensor.shape[-1]).astype(np.float64)
    with np.errstate(all="ignore"):  # numbers that are not finite stay so, and are found later
        found: Floats = np.c_[np.sqrt(np.square(rows).sum(1)), rows @ _signs(rows.shape[1])].astype(np.float32)
    return found


@cache
def _signs(width: int) -> npt.NDArray[np.float64]:
    """Signs [width, 8] over the root of 8; from a hash, so that every release of every library has the same."""
    stream = np.frombuffer(hashlib.shake_256(SEED).digest(width), np.uint8)
    return (1 - 2.0 * np.unpackbits(stream).reshape(width, PROJECTIONS)) / np.sqrt(PROJECTIONS)


@dataclass(frozen=True, eq=False)
class Choice:
    """What the pruning op chose n visual tokens from: importance float32 [n], and how alike they are [n, n]."""

    importance: Floats
    alike: Floats


@dataclass(frozen=True, eq=False)
class Observation:
    """One prompt at one keep ratio, with the T tokens of an answer; the last of them is not run. Live or recorded.

    Attributes:
        token_ids: int64 [S], the prompt.
        visual: bool [S], true at its visual tokens.
        inputs: the vision graph's inputs by `IMAGE.NAME`, sketches or whole numbers; images count from 0.
        features: of each image a sketch of its visual tokens.
        kept: int64 [K], the tokens of the prompt that went on past the pruning layer.
        tokens: int64 [T], the likeliest token at each place, after `forced`, the ones before.
        forced: int64 [T], the answer along which it ran.
        text: the answer, decoded.
        logits: float32 [T, V].
        cache: of each layer sketches of keys, then values: of the prompt's tokens that are left, then of the answer's.
        hidden: of each layer a sketch of its input, with rows as above but that the pruning layer still has the whole
            prompt; empty where it was not looked at.
        choice: what was chosen from; None where it was not looked at, or nothing was to be chosen.
    """

    token_ids: Ints
    visual: npt.NDArray[np.bool_]
    inputs: Mapping[str, Array]
    features: Sequence[Floats]
    kept: Ints
    tokens: Ints
    forced: Ints
    text: str
    logits: Floats
    cache: Sequence[Floats]
    hidden: Sequence[Floats]
    choice: Choice | None = None

    def tensors(self) -> dict[tuple[Stage, int, str], Array]:
        """What is compared one by one: by stage, layer and name. Inputs are of layer -1, logits of `LAST`."""
        found: dict[tuple[Stage, int, str], Array] = {}
        found |= {("pixels", -1, picture_name(key)): array for key, array in self.inputs.items()}
        found |= {("features", -1, f"image {n}"): rows for n, rows in enumerate(self.features, 1)}
        for n, rows in enumerate(self.cache):
            found["caches", n // 2, f"layer {n // 2}, {('key', 'value')[n % 2]}"] = rows
        found |= {("hidden states", n, f"input of layer {n}"): rows for n, rows in enumerate(self.hidden)}
        found["logits", LAST, ""] = self.logits
        return found


def observe(
    pipeline: Pipeline,
    prompt: Prompt,
    keep: float,
    max_new_tokens: int,
    forced: Sequence[int] | None = None,
    look: Look = "nothing",
    two_calls: bool = False,
) -> Observation:
    """Run a prompt as a user's request runs, and note what each stage made of it.

    Args:
        pipeline, prompt, keep: on any backend.
        max_new_tokens: of an answer that is not forced.
        forced: the answer to run along, whatever the model would say; None is its own.
        look: costs a second decoder where there is something to look at; see `Session.look`.
        two_calls: the end of the prompt is run over the cache of what comes before it.

    Raises:
        RequestError: the prompt does not fit the model.
        BackendError: the backend failed, or cannot look.
    """
    manifest, visual = pipeline.manifest, prompt.token_ids == pipeline.manifest.vision.image_token_id
    end = middle(visual) if two_calls else 0
    watched: Any = _Watched(pipeline.session, look, calls=2 if end else 1)
    best: list[int] = []

    def choose(logits: Floats) -> int:
        best.append(int(np.argmax(np.where(np.isnan(logits), -np.inf, logits))))
        return best[-1] if forced is None else int(forced[len(best) - 1])

    through = Pipeline(manifest, pipeline.processor, watched)
    context, new = Context(watched.new_cache()), max_new_tokens if forced is None else len(forced)
    call = through.prepare(context, prompt.token_ids[: end or None], prompt.pictures, keep)
    if end:
        call = replace(through.prepare(context, prompt.token_ids[end:], (), keep, call.next_position), earlier=(call,))
    # Past an end of sequence too: every sample then has as many tokens to compare.
    limits = through.limits(new, stop_at_eos=False)
    result = AnswerStream(through.answer(call, choose, limits, with_logits=True)).read()
    layers = zip(*(inside.hidden for inside in watched.inside), strict=True) if look == "layers" else ()
    choice = None
    if watched.inside and visual.any():
        seen, selection = watched.inside[0], manifest.pruning.selection()
        first = visual[: seen.importance.size]
        alike = pair_likeness(seen.key[:, first], seen.value[:, first], **selection)
        choice = Choice(seen.importance[first], alike)
    caches = (pipeline.session.read_cache(watched.cache, i) for i in range(manifest.decoder.layers))
    return Observation(
        token_ids=prompt.token_ids,
        visual=visual,
        inputs=picture_inputs(prompt.pictures),
        features=[sketch(pipeline.session.read_features(each)) for each in watched.features],
        kept=np.concatenate(watched.kept),
        tokens=np.array(best, np.int64),
        forced=np.array(result.token_ids, np.int64),
        text=result.text,
        logits=np.stack(result.logits or []),
        cache=[sketch(by_token(part)) for layer in caches for part in layer],
        hidden=[sketch(np.concatenate(calls)) for calls in layers],
        choice=choice,
    )


def middle(visual: npt.NDArray[np.bool_]) -> int:
    """Where to run a prompt in two calls: in the middle of what follows its last image; 0 where that is one token.

    Args:
        visual: bool [S], true at visual tokens.
    """
    start = int(np.flatnonzero(visual)[-1]) + 1 if visual.any() else 0
    return start + (visual.size - start) // 2 if visual.size - start > 1 else 0


class _Watched:
    """A session that remembers what a prompt and its answer made of it: features, kept tokens, cache and insides.

    The prompt is the first `calls` calls; its images are in the first.
    """

    def __init__(self, session: Session, look: Look, calls: int) -> None:
        self._session, self._look, self._calls, self._start = session, look, calls, 0
        self.inside: list[Inside] = []
        self.features: tuple[Features, ...] = ()
        self.kept: list[Ints] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def new_cache(self) -> Cache:
        self.cache = self._session.new_cache()
        return self.cache

    def step(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> StepOutput:
        prompt = len(self.kept) < self._calls
        if self._look == "layers" or (self._look == "choice" and prompt):
            output, inside = self._session.look(inputs, features, cache)
            self.inside.append(inside)
        else:
            output = self._session.step(inputs, features, cache)
        if prompt:
            self.features += tuple(features)
            self.kept.append(self._start + output.kept_index)
            self._start += inputs.input_ids.size
        return output


def picture_inputs(pictures: Sequence[Picture]) -> dict[str, Array]:
    """See `Observation.inputs`."""
    return {
        f"{number}.{name}": sketch(array) if np.issubdtype(array.dtype, np.floating) else array.astype(np.int64)
        for number, picture in enumerate(pictures)
        for name, array in picture.inputs.items()
    }


def picture_name(key: str) -> str:
    """What to call an input, by its name in `Observation.inputs`."""
    number, _, name = key.partition(".")
    return f"image {int(number) + 1}, {name}"


def by_token(part: Floats) -> Floats:
    """Keys or values [Hkv, P, d] as a row for each token, [P, Hkv * d]."""
    return part.transpose(1, 0, 2).reshape(part.shape[1], -1)


@dataclass(frozen=True)
class Sample:
    """A question that travels: its name in reports (number and image files), its text, the content of its images."""

    name: str
    prompt: str
    images: tuple[bytes, ...]
    kind: Kind = "question"

    def is_run(self, keep: float, keeps: Sequence[float]) -> bool:
        """Whether it is asked at one of the keep ratios."""
        return {"question": True, "seen": False, "two calls": keep in keeps[:2], "long": keep == 1}[self.kind]


def samples_of(questions: Sequence[Question]) -> list[Sample]:
    """Questions with the content of their images.

    Raises:
        DataError: a file cannot be read.
        RequestError: one is no image.
    """
    found = []
    for number, question in enumerate(questions, 1):
        name = f"{number} ({CONTROL.sub('?', ', '.join(path.name for path in question.images))})"
        try:
            found.append(Sample(name, question.prompt, tuple(path.read_bytes() for path in question.images)))
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {os_reason(error)}") from error
        for place, content in enumerate(found[-1].images, 1):
            try:
                load_image(content)
            except RequestError as error:
                raise RequestError(f"image {place} of sample {name}: {error}") from error
    return found


def vocabulary_of(tokenizer: Any) -> npt.NDArray[np.uint32]:
    """CRC-32 of the text of each token by itself, uint32 [V], empty for special ones: as answers are decoded."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))], skip_special_tokens=True)
    return np.array([zlib.crc32(text.encode()) for text in texts], np.uint32)


@dataclass(eq=False)
class ParityReference(ABC):
    """What is right.

    Attributes:
        name: what to call it in a report.
        identity: of which checkpoint it is, and how it prunes.
        dtype: element type in which it computes.
        no_hidden_states: why it has no states between layers; empty if it has.
        samples, keeps, new_tokens: what a recording has; None where any may be asked.
    """

    name: str
    identity: Identity
    dtype: str
    no_hidden_states: str = ""
    samples: Sequence[Sample] | None = None
    keeps: Sequence[float] | None = None
    new_tokens: int | None = None

    @abstractmethod
    def see(self, sample: Sample) -> tuple[Ints, Mapping[str, Array]]:
        """A sample's token ids and inputs (see `Observation`), without a run.

        Raises:
            RequestError: the sample cannot be asked.
        """

    @abstractmethod
    def vocabulary(self) -> npt.NDArray[np.uint32]:
        """A checksum of each token's text; see `vocabulary_of`."""

    @abstractmethod
    def observe(self, sample: Sample, keep: float, max_new_tokens: int, hidden_states: bool = False) -> Observation:
        """Its answer, as many tokens as asked, and what it was made of.

        Raises:
            RequestError: the sample cannot be asked.
            BackendError: the backend failed.
            RecordingError: a recording does not have it.
        """

    def observe_choosing(
        self, sample: Sample, keep: float, forced: Sequence[int], kept: Ints, hidden_states: bool = False
    ) -> Observation | None:
        """The same along an answer and with the prompt's tokens that an artefact kept; None if that is not possible.

        It tells an artefact that broke a tie otherwise from one that went wrong after it.
        """
        return None

    def answer(self, question: Question, max_new_tokens: int) -> str | None:
        """The unpruned model's own answer to a question, made of nothing that an artefact holds.

        None where there is no checkpoint to ask.

        Raises:
            DataError, RequestError: it cannot be asked.
        """
        return None


class ArtefactReference(ParityReference):
    """Another bundle or engine; `name` is its file's."""

    def __init__(self, pipeline: Pipeline, name: str) -> None:
        manifest, self._pipeline = pipeline.manifest, pipeline
        name = f"{name}, {pipeline.provider}, {manifest.decoder.dtype}"
        super().__init__(name, Identity.of(manifest), manifest.decoder.dtype, pipeline.session.no_look)

    def see(self, sample: Sample) -> tuple[Ints, Mapping[str, Array]]:
        prompt = self._pipeline.processor.ask_once(sample.prompt, sample.images)
        return prompt.token_ids, picture_inputs(prompt.pictures)

    def vocabulary(self) -> npt.NDArray[np.uint32]:
        return vocabulary_of(self._pipeline.processor.tokenizer)

    def observe(self, sample: Sample, keep: float, max_new_tokens: int, hidden_states: bool = False) -> Observation:
        prompt = self._pipeline.processor.ask_once(sample.prompt, sample.images)
        look: Look = "nothing" if self.no_hidden_states else "layers" if hidden_states else "choice"
        two_calls = sample.kind == "two calls"
        return observe(self._pipeline, prompt, keep, max_new_tokens, look=look, two_calls=two_calls)
