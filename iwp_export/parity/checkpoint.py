"""A checkpoint as the reference: transformers' own model, processor and `generate`, and the torch form of pruning."""

from __future__ import annotations

import contextlib
import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from iwp_export.backends.session import Floats, Ints
from iwp_export.backends.torch.session import TorchSession
from iwp_export.bundle.manifest import Manifest
from iwp_export.errors import RequestError
from iwp_export.exporter.loading import Device, enough_memory, open_live
from iwp_export.exporter.plan import Dtype, plan_export
from iwp_export.models.common.family import Picture
from iwp_export.parity.identity import Identity
from iwp_export.parity.observation import Look, Observation, heads_rows, observe, picture_inputs
from iwp_export.parity.sample import Sample
from iwp_export.parity.sketch import Rows, sketched
from iwp_export.runtime.images import load_image
from iwp_export.runtime.model import LoadedModel
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.processor import Prompt, user_message


class CheckpointReference:
    """What transformers makes of a prompt where nothing is pruned, and the torch reference where something is.

    Prompts are transformers' own too: its chat template, its processor.

    Args:
        manifest: the artefact's, whose pruning settings the reference takes.
        checkpoint: where the checkpoint is; None is where the artefact was exported from.
        device: where it runs.
        dtype: element type of weights and activations. A 16-bit artefact is nearer to the float32 model than to one
            that rounds as often as itself, but a 7B model takes 28 GB so.

    Raises:
        CheckpointError: the checkpoint is not there, or cannot be read.
        BackendError: there is no such device, or it has not the memory.
    """

    samples = None
    keeps = None
    new_tokens = None
    no_hidden_states = ""

    def __init__(
        self, manifest: Manifest, checkpoint: str | None = None, device: Device = "cpu", dtype: Dtype = "float32"
    ) -> None:
        source, revision = (
            (manifest.model.source, manifest.model.revision) if checkpoint is None else (checkpoint, None)
        )
        plan = plan_export(source, manifest.pruning, dtype=dtype, revision=revision)
        session, own, processor = open_live(plan, plan.decoder.dtype, device)
        local = plan.checkpoint.with_weights()
        self.dtype = plan.decoder.dtype
        self.name = f"checkpoint {plan.model.name}, torch, {self.dtype}"
        self.identity = Identity.of(own, local.digest())
        self.session, self._manifest, self._processor = session, own, processor
        self._model = session.model
        self._images = _image_processor(local.folder)
        self._texts = _text_processor(local.folder, self._images)
        if self._texts is None:
            self.name += ", placeholders counted by this package"
        # An answer goes on past its end: every sample then has as many tokens to compare.
        session.model.generation_config.eos_token_id = None

    def observe(self, sample: Sample, keep: float, max_new_tokens: int, hidden_states: bool = False) -> Observation:
        """See `ParityReference.observe`; `generate` at keep 1, the torch reference of pruning below."""
        if keep == 1:
            return self._generate(*self._prompt(sample), max_new_tokens, hidden_states)
        look: Look = "layers" if hidden_states else "choice"
        return observe(self._pipeline(self.session), self._prompt(sample)[0], keep, max_new_tokens, look=look)

    def observe_choosing(
        self, sample: Sample, keep: float, forced: Sequence[int], kept: Ints, hidden_states: bool = False
    ) -> Observation:
        """See `ParityReference.observe_choosing`."""

        def select(importance: Tensor, key: Tensor, value: Tensor, visual: Tensor, num_kept: Tensor) -> Tensor:
            chosen = kept if visual.any() else np.arange(visual.shape[1])
            return torch.from_numpy(chosen).to(importance.device)[None]

        session = self.session.choosing(self._manifest.pruning, select)
        look: Look = "layers" if hidden_states else "nothing"
        return observe(self._pipeline(session), self._prompt(sample)[0], keep, len(forced), forced, look)

    def _pipeline(self, session: TorchSession) -> Pipeline:
        return Pipeline(LoadedModel(self._manifest, self._processor, session))

    def _prompt(self, sample: Sample) -> tuple[Prompt, list[Image.Image]]:
        """A sample by transformers' processor, and its images.

        Raises:
            RequestError: it cannot be asked.
        """
        images = [load_image(image) for image in sample.open_images()]
        pictures = tuple(self._picture(image) for image in images)
        message = user_message(sample.prompt, len(images))
        template = self._processor.tokenizer if self._texts is None else self._texts
        try:
            text = template.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        except (ValueError, TemplateError) as error:
            reason = " ".join(str(error).split())
            raise RequestError(f"transformers cannot render {sample.name} for {self.name}: {reason}") from error
        if self._texts is None:
            return Prompt(self._processor.token_ids(text, pictures), pictures), images
        found = self._texts(images=images or None, text=[text], return_tensors="np")
        return Prompt(np.asarray(found["input_ids"][0], np.int64), pictures), images

    def _picture(self, image: Image.Image) -> Picture:
        return self._processor.picture(self._images(images=[image], return_tensors="np"))

    def _generate(
        self, prompt: Prompt, images: Sequence[Image.Image], max_new_tokens: int, hidden_states: bool
    ) -> Observation:
        """transformers' `generate`, which shares nothing with the artefact but the checkpoint."""
        model, ids = self._model, torch.from_numpy(prompt.token_ids)[None].to(self.session.device)
        layers = len(self.session.decoder.language_model.layers)
        with self._layer_inputs(range(layers if hidden_states else 1)) as seen, torch.no_grad(), enough_memory("cuda"):
            output: Any = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **self._pixels(images),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        tokens = output.sequences[0, ids.shape[1] :].cpu().numpy()
        visual = prompt.token_ids == self._manifest.vision.image_token_id
        counts = [picture.num_tokens for picture in prompt.pictures]
        features = np.split(seen[0][0][visual], np.cumsum(counts)[:-1]) if counts else []
        return Observation(
            token_ids=prompt.token_ids,
            visual=visual,
            inputs=tuple(map(picture_inputs, prompt.pictures)),
            features=tuple(map(sketched, features)),
            kept=np.arange(ids.shape[1]),
            tokens=tokens,
            forced=tokens,
            logits=np.stack([_host(logits[0]) for logits in output.logits]),
            cache=tuple(_layer_rows(layer) for layer in output.past_key_values.layers),
            hidden=tuple(sketched(np.concatenate(seen[i])) for i in range(layers)) if hidden_states else (),
        )

    def _pixels(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """What transformers' image processor makes of a prompt's images, as far as the model takes it."""
        if not images:
            return {}
        known = inspect.signature(self._model.forward).parameters
        outputs = dict(self._images(images=list(images), return_tensors="pt"))
        found = {name: value.to(self.session.device) for name, value in outputs.items() if name in known}
        dtype = self._model.dtype
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in found.items()}

    @contextlib.contextmanager
    def _layer_inputs(self, layers: range) -> Iterator[dict[int, list[Floats]]]:
        """Collect what enters decoder layers, call by call: [S, D] each."""
        seen: dict[int, list[Floats]] = defaultdict(list)

        def watch(layer: int) -> Any:
            def hook(module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
                hidden = named["hidden_states"] if "hidden_states" in named else inputs[0]
                seen[layer].append(_host(hidden[0]))

            return hook

        modules = self.session.decoder.language_model.layers
        handles = [modules[i].register_forward_pre_hook(watch(i), with_kwargs=True) for i in layers]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


def _image_processor(folder: Any) -> Any:
    from transformers import AutoImageProcessor

    # The back end that the runtime uses: others resize to slightly different pixels.
    return AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil", trust_remote_code=False)


def _text_processor(folder: Any, images: Any) -> Any:
    """transformers' own processor, or None where it needs packages that are not here (torchvision, for some)."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ImportError, OSError, ValueError):
        return None
    if not hasattr(processor, "image_processor"):
        return None
    processor.image_processor = images
    return processor


def _layer_rows(layer: Any) -> tuple[Rows, Rows]:
    return heads_rows(_host(layer.keys[0])), heads_rows(_host(layer.values[0]))


def _host(tensor: Tensor) -> Floats:
    found: Floats = tensor.detach().float().cpu().numpy()
    return found
