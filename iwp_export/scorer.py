"""A question after the unpruned pass, and what a pruning setting changes of its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iwp_export.backends.session import Ints
from iwp_export.backends.torch.decoder import Projected, Stream, Watch
from iwp_export.backends.torch.session import TorchFeatures, TorchSession
from iwp_export.bundle.manifest import Manifest
from iwp_export.errors import BackendError
from iwp_export.models.common.family import Picture
from iwp_export.pruning.settings import PruningSettings
from iwp_export.pruning.torch_select import Select, kept_index
from iwp_export.questions import MAX_NEW_TOKENS, Question
from iwp_export.runtime.generate import Context, query_index
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.processor import Processor, Prompt


@dataclass(frozen=True)
class Score:
    """One setting on one question.

    Attributes:
        kl: divergence of the next token's distribution from the unpruned model's, nats, mean over the answer's tokens.
        agrees: whether the greedy answer is the unpruned model's.
        right: whether the answer is the data's; None where it has none or it was not asked for.
    """

    kl: float
    agrees: bool
    right: bool | None = None


@dataclass(frozen=True)
class Prepared:
    """A question after the unpruned pass over its prompt of S tokens and its answer of T.

    Attributes:
        question: what was asked.
        pictures: its images.
        token_ids: int64 [S].
        visual: bool [S].
        answer: text of the unpruned model.
        log_probs: float32 [T, V], of each token of the answer.
        features: [n, D], of the visual tokens.
        layers: for each candidate layer, its input and its projections of the S + T - 1 tokens that are run.
    """

    question: Question
    pictures: tuple[Picture, ...]
    token_ids: Ints
    visual: npt.NDArray[np.bool_]
    answer: str
    log_probs: Tensor
    features: Tensor
    layers: Mapping[int, tuple[Stream, Projected]]

    @property
    def best(self) -> Tensor:
        """The answer's likeliest tokens, int64 [T]."""
        return self.log_probs.max(-1).indices

    @property
    def confidence(self) -> float:
        """Mean probability of the likeliest tokens."""
        return float(self.log_probs.max(-1).values.exp().mean())

    @property
    def right(self) -> bool | None:
        """Whether the unpruned model is right; None without an answer to compare with."""
        return None if self.question.answer is None else self.answer in self.question.answers


class Scorer:
    """Scores settings by a model in torch.

    Args:
        session: the model.
        manifest: what an export of it would say.
        processor: its processor.
        layers: the candidate layers.
        max_new_tokens: of an answer, at most.
    """

    def __init__(
        self,
        session: TorchSession,
        manifest: Manifest,
        processor: Processor,
        layers: Sequence[int],
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        self._session, self._manifest, self._processor = session, manifest, processor
        self._layers, self._max_new_tokens = frozenset(layers), max_new_tokens
        self._decoder, self._family = session.decoder, session.family

    def read(self, question: Question) -> Prompt:
        """A question's prompt.

        Raises:
            RequestError: it cannot be asked.
        """
        prompt = self._processor.ask_once(question.prompt, question.images)
        model = Pipeline(self._manifest, self._processor, self._session)
        model.prepare(Context(self._session.new_cache()), prompt.token_ids, prompt.pictures, 1.0)
        return prompt

    def prepare(self, question: Question) -> Prepared:
        """Answer a question with every visual token, and keep what settings need.

        Raises:
            RequestError: the question cannot be asked.
        """
        prompt = self.read(question)
        token_ids, pictures = prompt.token_ids, prompt.pictures
        pipeline = self._pipeline(self._manifest.pruning)
        result = pipeline.generate_ids(token_ids, pictures, keep=1.0, max_new_tokens=self._max_new_tokens)
        visual = token_ids == self._manifest.vision.image_token_id
        encoded = [self._session.encode(picture.inputs) for picture in pictures]
        features = torch.cat([each.values for each in encoded if isinstance(each, TorchFeatures)])
        with torch.no_grad():
            layers, logits = self._unpruned(prompt, visual, features, result.token_ids)
        log_probs = self._log_probs(logits)
        return Prepared(question, pictures, token_ids, visual, result.text, log_probs, features, layers)

    def score(
        self, prepared: Prepared, settings: PruningSettings, with_answer: bool = False, *, blind: bool = False
    ) -> Score:
        """Score a setting, at its keep ratio.

        Args:
            prepared: the question.
            settings: whose layer is one of the candidate layers.
            with_answer: also compare with the data's answer; costs a generation where the answer changes.
            blind: no visual token goes on from the layer on.
        """
        logits, base = self.logits(prepared, settings, blind=blind), prepared.log_probs
        kl = float((base.exp() * (base - self._log_probs(logits))).sum(-1).mean())
        agrees = bool((logits.argmax(-1) == prepared.best).all())
        return Score(max(kl, 0.0), agrees, self.is_right(prepared, settings, agrees, blind) if with_answer else None)

    def is_right(self, prepared: Prepared, settings: PruningSettings, agrees: bool, blind: bool = False) -> bool | None:
        """Whether the answer with a setting is the data's; None where it has none. One that `agrees` is known."""
        if prepared.question.answer is None:
            return None
        answer = prepared.answer if agrees else self.answer(prepared, settings, blind)
        return answer in prepared.question.answers

    def answer(self, prepared: Prepared, settings: PruningSettings, blind: bool = False) -> str:
        """The greedy answer with a setting; `blind`: where no visual token goes on from its layer on."""
        ids, pictures = prepared.token_ids, prepared.pictures
        pipeline = self._pipeline(settings, _text_alone if blind else None)
        return pipeline.generate_ids(ids, pictures, max_new_tokens=self._max_new_tokens).text

    def logits(
        self, prepared: Prepared, settings: PruningSettings, look: Watch | None = None, blind: bool = False
    ) -> Tensor:
        """Logits [T, V] of the unpruned answer's tokens, teacher-forced, with a setting.

        Args:
            prepared: the question.
            settings: whose layer is one of the candidate layers.
            look: told what each layer from the pruning layer on computes, of the tokens that are left there.
            blind: no visual token goes on from the layer on.
        """
        stream, projected = prepared.layers[settings.layer]
        with torch.no_grad():
            text = self._tensor(np.flatnonzero(~prepared.visual))
            kept = text if blind else self._kept_index(prepared, settings)
            row = torch.cat([kept, torch.arange(len(prepared.token_ids), stream.hidden.shape[1], device=kept.device)])
            stream, projected = stream.only(row), projected.only(row)
            mask = self._family.mask(len(row), 0, stream.hidden)
            for number in range(settings.layer, len(self._decoder.language_model.layers)):
                if number > settings.layer:
                    projected = self._decoder.project(number, stream)
                if look is not None:
                    look(number, stream, projected)
                key, value = projected.rotated_key, projected.value
                stream = self._decoder.attend(
                    number, stream, projected.rotated_query, key, value, mask, prepared.features
                )
            return self._decoder.logits(stream.hidden[:, -len(prepared.best) :])[0]

    def _pipeline(self, settings: PruningSettings, select: Select | None = None) -> Pipeline:
        manifest = replace(self._manifest, pruning=settings)
        return Pipeline(manifest, self._processor, self._session.choosing(settings, select))

    def _unpruned(
        self, prompt: Prompt, visual: npt.NDArray[np.bool_], features: Tensor, answer: Sequence[int]
    ) -> tuple[dict[int, tuple[Stream, Projected]], Tensor]:
        """One pass over prompt and answer: states of the candidate layers, and the answer's logits [T, V]."""
        positions, after = self._family.positions(visual, prompt.pictures, 0)
        rest = np.zeros(len(answer) - 1, bool)
        further, _ = self._family.positions(rest, (), after)
        ids = np.concatenate([prompt.token_ids, np.array(answer[:-1], np.int64)])
        visual = np.concatenate([visual, rest])
        index = np.where(visual, np.cumsum(visual) - 1, -1)
        where = self._tensor(np.concatenate([positions, further], axis=-1))
        stream = self._decoder.start(self._tensor(ids[None]), features, self._tensor(index[None]), where)
        mask = self._family.mask(len(ids), 0, stream.hidden)
        layers = {}
        for number in range(len(self._decoder.language_model.layers)):
            projected = self._decoder.project(number, stream)
            if number in self._layers:
                layers[number] = stream, projected
            key, value = projected.rotated_key, projected.value
            stream = self._decoder.attend(number, stream, projected.rotated_query, key, value, mask, features)
        return layers, self._decoder.logits(stream.hidden[:, -len(answer) :])[0]

    def _kept_index(self, prepared: Prepared, settings: PruningSettings) -> Tensor:
        """Which tokens of the prompt go on, int64 [K]."""
        stream, projected = prepared.layers[settings.layer]
        size = len(prepared.token_ids)
        prompt = Projected(*(getattr(projected, name)[:, :, :size] for name in vars(projected)))
        feature_index = stream.feature_index[:, :size]
        rows = self._tensor(query_index(prepared.visual, settings.scoring_query))
        importance, compared = self._decoder.score(prompt, rows, feature_index, settings)
        num_visual = int(prepared.visual.sum())
        num_kept = size - num_visual + settings.num_keep(num_visual)
        return kept_index(importance, compared, prompt.value, feature_index >= 0, num_kept, settings)[0]

    def _log_probs(self, logits: Tensor) -> Tensor:
        """Logarithms of probabilities [T, V].

        Raises:
            BackendError: they are not finite: the element type cannot hold the model's values.
        """
        log_probs = torch.log_softmax(logits, -1)
        if not bool(torch.isfinite(log_probs).all()):
            raise BackendError(
                f"the model's logits are not finite in {str(self._session.model.dtype).removeprefix('torch.')}; "
                "take another element type",
                options=("dtype", "checkpoint_dtype"),
            )
        return log_probs

    def _tensor(self, array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._session.device)


def _text_alone(importance: Tensor, key: Tensor, value: Tensor, visual: Tensor, num_kept: Tensor) -> Tensor:
    """A pruning op that drops every visual token, whatever the budget."""
    return torch.nonzero(~visual[0])[:, 0][None]
