"""The pipeline: an exported bundle that answers questions about images. Needs no torch."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from iwp_export.backends.session import Features, Floats, Ints, Session, StepOutput
from iwp_export.bundle.manifest import Manifest
from iwp_export.bundle.store import Bundle, Verify
from iwp_export.engine.files import SUFFIX
from iwp_export.errors import BackendError, RequestError
from iwp_export.models import find_family
from iwp_export.models.common.family import Picture
from iwp_export.runtime.conversation import Conversation, Images
from iwp_export.runtime.drawing import draw_kept
from iwp_export.runtime.generate import TEXT, AnswerLimits, Call, Context, build_decode, build_prompt, kept_patches
from iwp_export.runtime.processor import Processor
from iwp_export.runtime.result import AnswerStream, Detokenizer, Result, Timing
from iwp_export.runtime.sampling import Chooser, adjust_logits, greedy

IMAGES_REMEMBERED = 8
"""Images whose features are kept for further questions: a few MB each in a 7B model."""


class Pipeline:
    """A loaded bundle. Make it with `Pipeline.open` or `iwp_export.load`; use it from one thread at a time.

    Attributes:
        manifest: the bundle's.
        family: the model's.
        processor: tokenizer, image processor and chat template.
        session: the backend itself, for measurements that call its graphs.
    """

    def __init__(self, manifest: Manifest, processor: Processor, session: Session) -> None:
        self.manifest = manifest
        self.family = find_family(manifest.model.model_type)
        self.processor = processor
        self.session = session
        self._features: OrderedDict[bytes, Features] = OrderedDict()

    @classmethod
    def open(
        cls, path: Path | str, *, provider: str = "cpu", threads: int | None = None, verify: Verify = "quick"
    ) -> Pipeline:
        """Load a bundle, or a TensorRT engine that was built from one.

        Args:
            path: the bundle's folder, or NAME.plan.
            provider: ONNX Runtime execution provider: `cpu`, `cuda`, `tensorrt`, ...; not for an engine.
            threads: threads of one operator; None is the backend's choice. Not for an engine.
            verify: `quick` or `full`, see `Bundle.open`.

        Raises:
            BundleError: not a bundle, damaged, or from a newer version.
            BackendError: the backend or the provider is missing, or is not the one that runs.
        """
        if Path(path).suffix == SUFFIX:
            if provider != "cpu" or threads is not None:
                raise BackendError("an engine runs on the TensorRT that built it: provider and threads are for bundles")
            from iwp_export.backends.trt.load import load_engine

            return cls.of(*load_engine(path, verify))
        from iwp_export.backends.ort.session import OrtSession

        bundle = Bundle.open(path, verify)
        session = OrtSession(bundle, provider, threads)
        return cls.of(bundle.manifest, bundle.path(bundle.manifest.processor), session)

    @classmethod
    def of(cls, manifest: Manifest, processor: Path, session: Session) -> Pipeline:
        """A pipeline over a session that is open already; `processor` is the artefact's folder of that name."""
        family = find_family(manifest.model.model_type)
        return cls(manifest, Processor(processor, manifest.vision, family), session)

    @property
    def provider(self) -> str:
        """What runs the graphs."""
        return self.session.provider

    def __call__(
        self,
        image: Images,
        prompt: str,
        *,
        keep: float | None = None,
        on_token: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Result:
        """Answer one question.

        Args:
            image: a path, a PIL image or a uint8 array [H, W, 3]; a list of these; or None for text alone.
            prompt: the user's text; the chat template puts the images before it.
            keep: fraction of the visual tokens that stays, 0.0001 to 1; None is the exported one. 1 prunes nothing.
            on_token: called with each piece of text once it is complete.
            **options: fields of `AnswerOptions`, such as max_new_tokens and temperature.

        Raises:
            RequestError: the request cannot be served.
            BackendError: the backend failed.
        """
        return self.chat(keep).ask(prompt, image, on_token=on_token, **options)

    def stream(self, image: Images, prompt: str, *, keep: float | None = None, **options: Any) -> AnswerStream:
        """Like a call, but yields pieces of text as they become complete; `result` is there at the end."""
        return self.chat(keep).stream(prompt, image, **options)

    def chat(self, keep: float | None = None) -> Conversation:
        """A conversation of several turns, at one keep ratio."""
        return Conversation(self, keep)

    def generate_ids(
        self,
        token_ids: npt.ArrayLike,
        pictures: Sequence[Picture] = (),
        *,
        max_new_tokens: int = 64,
        keep: float | None = None,
        choose: Chooser = greedy,
        stop_at_eos: bool = True,
        return_logits: bool = False,
    ) -> Result:
        """Generate from token ids and pictures, with no chat template: the entry for comparisons.

        Args:
            token_ids: [S] or [1, S], one image token for each visual token, as transformers' processors make them.
            pictures: what `processor.image` or `processor.picture` made.
            max_new_tokens, keep: as in a call.
            choose: from logits to a token; one that returns a reference's tokens compares logits along its path.
            stop_at_eos: false generates `max_new_tokens` tokens whatever they are, for timing.
            return_logits: keep the logits float32 [V] of each generated token in the result.

        Raises:
            RequestError: tokens and pictures do not fit each other or the model.
        """
        limits = self.limits(max_new_tokens, stop_at_eos)
        call = self.prepare(Context(self.session.new_cache()), token_ids, pictures, keep)
        return AnswerStream(self.answer(call, choose, limits, with_logits=return_logits)).read()

    def draw_kept(self, result: Result, index: int = 0) -> Image.Image:
        """The `index`-th picture of a result as the model saw it, the visual tokens that were dropped dimmed.

        Raises:
            RequestError: the result has no such picture.
        """
        if not 0 <= index < len(result.pictures):
            raise RequestError(f"the result has {len(result.pictures)} picture(s), so none with index {index}")
        return draw_kept(result.pictures[index], result.kept[index])

    # What a conversation and measurements build on.

    def features(self, picture: Picture) -> Features:
        """An image's features, computed once while it is among the last `IMAGES_REMEMBERED` different images."""
        found = self._features.get(picture.digest)
        if found is None:
            found = self._features[picture.digest] = self.session.encode(picture.inputs)
            if len(self._features) > IMAGES_REMEMBERED:
                self._features.popitem(last=False)
        self._features.move_to_end(picture.digest)
        return found

    def prepare(
        self,
        context: Context,
        token_ids: npt.ArrayLike,
        pictures: Sequence[Picture],
        keep: float | None,
        position: int | None = None,
    ) -> Call:
        """A call that appends tokens, with their images, to a context.

        Args:
            context, pictures: what the call continues, and the images that it adds.
            token_ids: [S], with one image token for each visual token.
            keep: fraction of its visual tokens that stays.
            position: where the call begins; None is where the context ends. Another where earlier calls come first.

        Raises:
            RequestError: keep is out of range, or tokens and images do not fit each other or the model's positions.
        """
        ids, decoder = _ids(token_ids), self.manifest.decoder
        visual = ids == self.manifest.vision.image_token_id
        expected = sum(picture.num_tokens for picture in pictures)
        if visual.sum() != expected:
            raise RequestError(f"the prompt has {visual.sum()} visual tokens, {len(pictures)} image(s) make {expected}")
        if ids.size and (ids.min() < 0 or ids[~visual].max(initial=0) >= decoder.vocab_size):
            raise RequestError(f"token ids must be within 0 and {decoder.vocab_size - 1}, got {ids.min()}..{ids.max()}")
        start = context.next_position if position is None else position
        positions, after = self.family.positions(visual, pictures, start)
        if after > decoder.max_positions:
            raise RequestError(
                f"the prompt reaches position {after} with {expected} new visual tokens, the model takes "
                f"{decoder.max_positions}: shorten it, use fewer images, or begin a new conversation"
            )
        inputs = build_prompt(ids, visual, positions, self.manifest.pruning, keep)
        return Call(context, inputs, tuple(pictures), after)

    def limits(self, max_new_tokens: int, stop_at_eos: bool = True) -> AnswerLimits:
        """Where an answer of this model ends."""
        decoder = self.manifest.decoder
        return AnswerLimits(max_new_tokens, decoder.eos_token_ids if stop_at_eos else (), decoder.max_positions)

    def answer(
        self, call: Call, choose: Chooser, limits: AnswerLimits, *, with_logits: bool = False
    ) -> Generator[str, None, Result]:
        """Run a call, after the ones before it; yields pieces of text and returns the result.

        The last token is not run into the cache.
        """
        context, decoder, session = call.context, self.manifest.decoder, self.session
        reused = len(context.token_ids)
        parts = (*call.earlier, call)
        start = time.perf_counter()
        features = [[self.features(picture) for picture in part.pictures] for part in parts]
        vision = time.perf_counter() - start if any(features) else 0.0
        token_ids: list[int] = []
        logits: list[Floats] = []
        decode, text = 0.0, Detokenizer(self.processor.decode)

        def pick(output: StepOutput) -> int:
            if with_logits:
                logits.append(output.logits)
            eos, done = decoder.eos_token_ids, len(token_ids)
            return choose(adjust_logits(output.logits, self.manifest.generation, eos, context.token_ids, done))

        start = time.perf_counter()
        outputs = [part.run(session, images) for part, images in zip(parts, features, strict=True)]
        token = pick(outputs[-1])
        prefill = time.perf_counter() - start
        while True:
            token_ids.append(token)
            finish_reason = limits.reached(token_ids, context.next_position)
            if token not in limits.eos_token_ids and (piece := text.add(token)):
                yield piece
            if finish_reason is not None:
                break
            start = time.perf_counter()
            positions, after = self.family.positions(TEXT, (), context.next_position)
            token = pick(Call(context, build_decode(token, positions), next_position=after).run(session))
            decode += time.perf_counter() - start
        if piece := text.finish():
            yield piece
        counts = [[image.count for image in images] for images in features]
        kept: list[list[int]] = []
        for part, output, count in zip(parts, outputs, counts, strict=True):
            kept += kept_patches(part.inputs, output.kept_index, count)
        return Result(
            text=text.text,
            token_ids=token_ids,
            finish_reason=finish_reason,
            timing=Timing(call.preprocess, vision, prefill, decode, len(token_ids) - 1),
            prompt_tokens=reused + sum(part.inputs.input_ids.size for part in parts),
            reused_tokens=reused,
            note="; ".join(filter(None, (call.note, self.manifest.generation.note))),
            pictures=tuple(picture for part in parts for picture in part.pictures),
            visual_tokens=sum(map(sum, counts)),
            kept=kept,
            cache_bytes=context.cache.nbytes,
            cache_bytes_unpruned=decoder.cache_bytes([len(context.token_ids)] * decoder.layers),
            cache_lengths=tuple(context.cache.lengths),
            logits=logits if with_logits else None,
        )


def _ids(token_ids: npt.ArrayLike) -> Ints:
    """Token ids as int64 [S]; [1, S] is taken too.

    Raises:
        RequestError: they are ragged, of several rows, or no whole numbers.
    """
    try:
        ids = np.asarray(token_ids)
    except ValueError as error:  # rows of different lengths
        raise RequestError(f"token ids must be a list of whole numbers: {error}") from error
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise RequestError(f"token ids must be whole numbers [S] or [1, S], got {ids.dtype} {list(ids.shape)}")
    return ids.astype(np.int64)
