"""The pipeline: an exported bundle that answers questions about images. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
from PIL import Image

from iwp_export.backends.session import Session
from iwp_export.bundle.manifest import Manifest
from iwp_export.bundle.store import Bundle, Verify
from iwp_export.engine.files import SUFFIX
from iwp_export.errors import BackendError, RequestError
from iwp_export.models import find_family
from iwp_export.models.common.family import Picture
from iwp_export.runtime.conversation import Conversation, Images
from iwp_export.runtime.drawing import draw_kept
from iwp_export.runtime.generate import Context
from iwp_export.runtime.model import LoadedModel
from iwp_export.runtime.processor import Processor
from iwp_export.runtime.result import AnswerStream, Result
from iwp_export.runtime.sampling import Chooser, greedy


class Pipeline:
    """A loaded bundle. Make it with `Pipeline.open` or `iwp_export.load`; use it from one thread at a time."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model

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
        return cls(LoadedModel(manifest, Processor(processor, manifest.vision, family), session))

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self._model.manifest

    @property
    def provider(self) -> str:
        """What runs the graphs."""
        return self._model.session.provider

    @property
    def session(self) -> Session:
        """The backend itself, for measurements that call its graphs."""
        return self._model.session

    @property
    def processor(self) -> Processor:
        """Tokenizer, image processor and chat template."""
        return self._model.processor

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
            keep: fraction of the visual tokens that stays, in (0, 1]; None is the exported one. 1 prunes nothing.
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
        return Conversation(self._model, keep)

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
        limits = self._model.limits(max_new_tokens, stop_at_eos)
        call = self._model.prepare(Context(self._model.session.new_cache()), token_ids, pictures, keep)
        limits.check_prompt(call)
        stream = AnswerStream(self._model.answer(call, choose, limits, with_logits=return_logits))
        for _ in stream:
            pass
        return stream.result

    def draw_kept(self, result: Result, index: int = 0) -> Image.Image:
        """The `index`-th picture of a result as the model saw it, the visual tokens that were dropped dimmed.

        Raises:
            RequestError: the result has no such picture.
        """
        if not 0 <= index < len(result.pictures):
            raise RequestError(f"the result has {len(result.pictures)} picture(s), so none with index {index}")
        return draw_kept(result.pictures[index], result.kept[index])
