"""A loaded bundle: processor, session, the features of recent images, and the way from a call to an answer."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Generator, Sequence

import numpy as np
import numpy.typing as npt

from iwp_export.backends.session import Features, Floats, Ints, Session
from iwp_export.bundle.manifest import Manifest
from iwp_export.errors import RequestError
from iwp_export.models import find_family
from iwp_export.models.common.family import Picture
from iwp_export.runtime.generate import (
    AnswerLimits,
    Call,
    Context,
    GenerationRecord,
    build_prompt,
    generate,
    kept_patches,
)
from iwp_export.runtime.processor import Processor
from iwp_export.runtime.result import Result, Timing
from iwp_export.runtime.sampling import Chooser, adjust_logits
from iwp_export.runtime.text import Detokenizer

IMAGES_REMEMBERED = 8
"""Images whose features are kept for further questions: a few MB each in a 7B model."""


class LoadedModel:
    """What pipelines and conversations share. Not for use from several threads at a time."""

    def __init__(self, manifest: Manifest, processor: Processor, session: Session) -> None:
        self.manifest = manifest
        self.family = find_family(manifest.model.model_type)
        self.processor = processor
        self.session = session
        self._features: OrderedDict[bytes, Features] = OrderedDict()

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
            context: what the call continues.
            token_ids: [S], with one image token for each visual token.
            pictures: the images among them.
            keep: fraction of their visual tokens that stays.
            position: where the call begins; None is where the context ends. Another where earlier calls come first.

        Raises:
            RequestError: keep is out of range, or tokens and images do not fit each other.
        """
        ids, vocabulary = _ids(token_ids), self.manifest.decoder.vocab_size
        visual = ids == self.manifest.vision.image_token_id
        expected = sum(picture.num_tokens for picture in pictures)
        if visual.sum() != expected:
            raise RequestError(f"the prompt has {visual.sum()} visual tokens, {len(pictures)} image(s) make {expected}")
        if ids.size and (ids.min() < 0 or ids[~visual].max(initial=0) >= vocabulary):
            raise RequestError(f"token ids must be within 0 and {vocabulary - 1}, got {ids.min()}..{ids.max()}")
        start = context.next_position if position is None else position
        positions, after = self.family.positions(visual, pictures, start)
        inputs = build_prompt(ids, visual, positions, self.manifest.pruning, keep)
        return Call(context, inputs, tuple(pictures), after)

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
        record = GenerationRecord(logits=[] if with_logits else None)
        kept: list[list[int]] = []
        for part, images, count in zip(call.earlier, features, counts, strict=False):
            start = time.perf_counter()
            output = part.run(self.session, images)
            record.prefill += time.perf_counter() - start
            kept += kept_patches(part.inputs, output.kept_index, count)
        text = Detokenizer(self.processor.decode)

        def pick(logits: Floats) -> int:
            eos, done = decoder.eos_token_ids, len(record.token_ids)
            return choose(adjust_logits(logits, self.manifest.generation, eos, context.token_ids, done))

        for token in generate(self.session, self.family, call, features[-1], pick, limits, record):
            if token not in limits.eos_token_ids and (piece := text.add(token)):
                yield piece
        if piece := text.finish():
            yield piece
        return Result(
            text=text.text,
            token_ids=record.token_ids,
            finish_reason=record.finish_reason,
            timing=Timing(call.preprocess, vision, record.prefill, record.decode, len(record.token_ids) - 1),
            prompt_tokens=reused + sum(part.inputs.input_ids.size for part in parts),
            reused_tokens=reused,
            note="; ".join(filter(None, (call.note, self.manifest.generation.note))),
            pictures=tuple(picture for part in parts for picture in part.pictures),
            visual_tokens=sum(map(sum, counts)),
            kept=[*kept, *kept_patches(call.inputs, record.kept_index, counts[-1])],
            cache_bytes=context.cache.nbytes,
            cache_bytes_unpruned=decoder.cache_bytes([len(context.token_ids)] * decoder.layers),
            cache_lengths=tuple(context.cache.lengths),
            logits=record.logits,
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
