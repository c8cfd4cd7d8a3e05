"""A loaded bundle: processor, session, the features of recent images, and the way from a call to an answer."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy.typing as npt

from iwp_export.backends.session import Features, Session, StepInputs
from iwp_export.bundle.manifest import Manifest
from iwp_export.errors import RequestError
from iwp_export.runtime.generate import AnswerLimits, Context, GenerationRecord, generate
from iwp_export.runtime.images import Picture
from iwp_export.runtime.processor import Processor
from iwp_export.runtime.request import build_prompt, kept_patches
from iwp_export.runtime.result import Result, Timing
from iwp_export.runtime.sampling import Chooser
from iwp_export.runtime.text import Detokenizer

IMAGES_REMEMBERED = 8
"""Images whose features are kept for further questions: a few MB each in a 7B model."""


@dataclass(frozen=True)
class Call:
    """One call of the decoder with a prompt or a further turn, ready to run after the `earlier` ones."""

    context: Context
    inputs: StepInputs
    pictures: tuple[Picture, ...]
    preprocess: float = 0.0
    note: str = ""
    earlier: tuple[Call, ...] = ()


class LoadedModel:
    """What pipelines and conversations share. Not for use from several threads at a time."""

    def __init__(self, manifest: Manifest, processor: Processor, session: Session) -> None:
        self.manifest = manifest
        self.processor = processor
        self.session = session
        self._features: OrderedDict[bytes, Features] = OrderedDict()

    def features(self, picture: Picture) -> Features:
        """An image's features, computed once while it is among the last `IMAGES_REMEMBERED` different images."""
        found = self._features.get(picture.digest)
        if found is None:
            found = self._features[picture.digest] = self.session.encode(picture.pixel_values)
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
        ahead: int = 0,
    ) -> Call:
        """A call that appends tokens, with their images, to a context.

        Args:
            context: what the call continues.
            token_ids: [S], with one image token for each visual token.
            pictures: the images among them.
            keep: fraction of their visual tokens that stays.
            ahead: tokens of earlier calls that the context does not hold yet.

        Raises:
            RequestError: keep is out of range, or tokens and images do not fit each other.
        """
        vision = self.manifest.vision
        start = len(context.token_ids) + ahead
        inputs = build_prompt(token_ids, vision.image_token_id, self.manifest.pruning, keep, start)
        visual, expected = int((inputs.feature_index >= 0).sum()), vision.tokens_per_image * len(pictures)
        if visual != expected:
            raise RequestError(f"the prompt has {visual} visual tokens, {len(pictures)} image(s) make {expected}")
        vocabulary = self.manifest.decoder.vocab_size
        if inputs.input_ids.min() < 0 or inputs.input_ids.max() >= max(vocabulary, vision.image_token_id + 1):
            raise RequestError(f"token ids must be within 0 and {vocabulary - 1}")
        return Call(context, inputs, tuple(pictures))

    def limits(self, max_new_tokens: int, stop_at_eos: bool = True) -> AnswerLimits:
        """Where an answer of this model ends."""
        decoder = self.manifest.decoder
        return AnswerLimits(max_new_tokens, decoder.eos_token_ids if stop_at_eos else (), decoder.max_positions)

    def answer(
        self, call: Call, choose: Chooser, limits: AnswerLimits, *, with_logits: bool = False
    ) -> Generator[str, None, Result]:
        """Run a call, after the ones before it; yields pieces of text and returns the result."""
        context, decoder = call.context, self.manifest.decoder
        reused = len(context.token_ids)
        parts = (*call.earlier, call)
        start = time.perf_counter()
        features = [[self.features(picture) for picture in part.pictures] for part in parts]
        vision = time.perf_counter() - start if any(features) else 0.0
        counts = [[image.count for image in images] for images in features]
        digests = [[picture.digest for picture in part.pictures] for part in parts]
        trace = GenerationRecord(logits=[] if with_logits else None)
        kept: list[list[int]] = []
        for index, part in enumerate(call.earlier):
            start = time.perf_counter()
            output = context.run(self.session, part.inputs, features[index], digests[index])
            trace.prefill += time.perf_counter() - start
            kept += kept_patches(part.inputs, output.kept_index, counts[index])
        text = Detokenizer(self.processor.decode)
        for token in generate(self.session, context, call.inputs, features[-1], digests[-1], choose, limits, trace):
            if token not in limits.eos_token_ids and (piece := text.add(token)):
                yield piece
        if piece := text.finish():
            yield piece
        return Result(
            text=text.text,
            token_ids=trace.token_ids,
            finish_reason=trace.finish_reason,
            timing=Timing(call.preprocess, vision, trace.prefill, trace.decode, len(trace.token_ids) - 1),
            prompt_tokens=reused + sum(part.inputs.input_ids.size for part in parts),
            reused_tokens=reused,
            note=call.note,
            pictures=tuple(picture for part in parts for picture in part.pictures),
            visual_tokens=sum(map(sum, counts)),
            kept=[*kept, *kept_patches(call.inputs, trace.kept_index, counts[-1])],
            cache_bytes=context.cache.nbytes,
            cache_bytes_unpruned=decoder.cache_bytes([len(context.token_ids)] * decoder.layers),
            logits=trace.logits,
        )
