"""A checkpoint as the reference: transformers' own model, processor and `generate`, and the torch form of pruning."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from iwp_export.backends.session import Floats, Ints
from iwp_export.backends.torch.session import TorchSession
from iwp_export.bundle.manifest import Manifest
from iwp_export.errors import RequestError, in_one_line
from iwp_export.exporter.live import enough_memory, open_live
from iwp_export.exporter.plan import plan_export
from iwp_export.parity.figures import Identity
from iwp_export.parity.observation import (
    Look,
    Observation,
    ParityReference,
    Sample,
    by_token,
    observe,
    picture_inputs,
    samples_of,
    sketch,
    vocabulary_of,
)
from iwp_export.questions import Question
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.processor import Prompt, user_message
from iwp_export.settings import Device, Dtype


class CheckpointReference(ParityReference):
    """What transformers makes of a prompt where nothing is pruned, and the torch reference where something is.

    Prompts are transformers' own too: its chat template, its processor.

    Args:
        manifest: the artefact's, whose pruning settings the reference takes.
        checkpoint: where the checkpoint is; None is where the artefact was exported from.
        device: where it runs.
        dtype: element type of weights and activations. A 16-bit artefact is nearer to the float32 model than to one
            that rounds as often as itself, but a 7B model takes 28 GB so.

    Attributes:
        session: the loaded checkpoint, for whoever measures it further.

    Raises:
        CheckpointError: the checkpoint is not there, or cannot be read.
        BackendError: there is no such device, or it has not the memory.
    """

    def __init__(
        self, manifest: Manifest, checkpoint: str | None = None, device: Device = "cpu", dtype: Dtype = "float32"
    ) -> None:
        model = manifest.model
        source, revision = (model.source, model.revision) if checkpoint is None else (checkpoint, None)
        plan = plan_export(source, manifest.pruning, dtype=dtype, revision=revision)
        self.session, self._manifest, self._processor = open_live(plan, plan.decoder.dtype, device)
        local = plan.checkpoint.with_weights()
        self._images, self._texts = _processors(local.folder)
        name = f"checkpoint {plan.model.name}, torch, {plan.decoder.dtype}"
        name += ", placeholders counted by this package" if self._texts is None else ""
        super().__init__(name, Identity.of(self._manifest, local.digest()), plan.decoder.dtype)
        # What is compared goes on past an answer's end: every sample then has as many tokens.
        generation = self.session.model.generation_config
        self._ends, generation.eos_token_id = generation.eos_token_id, None

    def see(self, sample: Sample) -> tuple[Ints, Mapping[str, Any]]:
        prompt, _ = self._ask(sample)
        return prompt.token_ids, picture_inputs(prompt.pictures)

    def vocabulary(self) -> npt.NDArray[np.uint32]:
        return vocabulary_of(self._processor.tokenizer)

    def answer(self, question: Question, max_new_tokens: int) -> str:
        """See `ParityReference.answer`: transformers' own from the image files to the text."""
        [sample] = samples_of([question])
        asked, inputs = self._ask(sample)
        output = self._run(inputs, max_new_tokens, eos_token_id=self._ends)
        return self._text(output.sequences[0, len(asked.token_ids) :])

    def observe(self, sample: Sample, keep: float, max_new_tokens: int, hidden_states: bool = False) -> Observation:
        """See `ParityReference.observe`; `generate` at keep 1, the torch reference of pruning below."""
        prompt, inputs = self._ask(sample)
        if keep == 1:
            return self._generate(prompt, inputs, max_new_tokens, hidden_states)
        look: Look = "layers" if hidden_states else "choice"
        two_calls = sample.kind == "two calls"
        return observe(self._pipeline(self.session), prompt, keep, max_new_tokens, look=look, two_calls=two_calls)

    def observe_choosing(
        self, sample: Sample, keep: float, forced: Sequence[int], kept: Ints, hidden_states: bool = False
    ) -> Observation:
        def select(importance: Tensor, key: Tensor, value: Tensor, visual: Tensor, num_kept: Tensor) -> Tensor:
            # Of a prompt's second call, and of a generated token, everything goes on.
            chosen = kept[kept < visual.shape[1]] if visual.any() else np.arange(visual.shape[1])
            return torch.from_numpy(chosen).to(importance.device)[None]

        session = self.session.choosing(self._manifest.pruning, select)
        look: Look = "layers" if hidden_states else "nothing"
        two_calls = sample.kind == "two calls"
        return observe(self._pipeline(session), self._ask(sample)[0], keep, len(forced), forced, look, two_calls)

    def _pipeline(self, session: TorchSession) -> Pipeline:
        return Pipeline(self._manifest, self._processor, session)

    def _ask(self, sample: Sample) -> tuple[Prompt, Mapping[str, Tensor]]:
        """A sample by transformers' processor: as the runtime takes it, and as transformers' model does.

        Raises:
            RequestError: it cannot be asked.
        """
        from transformers.image_utils import load_image

        images = [load_image(Image.open(BytesIO(content))) for content in sample.images]
        try:
            outputs = [self._images(images=[image], return_tensors="np") for image in images]
        except ValueError as error:  # of another aspect ratio than it takes, for example
            raise RequestError(f"transformers cannot preprocess {sample.name}: {in_one_line(error)}") from error
        pictures = tuple(map(self._processor.picture, outputs))
        template = self._processor.tokenizer if self._texts is None else self._texts
        message = user_message(sample.prompt, len(images))
        try:
            text = template.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        except (ValueError, TemplateError) as error:
            what = f"transformers cannot render {sample.name} for {self.name}"
            raise RequestError(f"{what}: {in_one_line(error)}") from error
        if self._texts is None:
            inputs = dict(self._images(images=images, return_tensors="pt")) if images else {}
            inputs["input_ids"] = torch.from_numpy(self._processor.token_ids(text, pictures))[None]
        else:
            inputs = dict(self._texts(images=images or None, text=[text], return_tensors="pt"))
        return Prompt(inputs["input_ids"][0].numpy(), pictures), inputs

    def _generate(
        self, prompt: Prompt, inputs: Mapping[str, Tensor], max_new_tokens: int, hidden_states: bool
    ) -> Observation:
        """transformers' `generate`, which shares nothing with the artefact but the checkpoint."""
        output = self._run(
            inputs,
            max_new_tokens,
            output_logits=True,
            output_hidden_states=True,
        )
        tokens = output.sequences[0, len(prompt.token_ids) :].cpu().numpy()
        visual = prompt.token_ids == self._manifest.vision.image_token_id
        features = _host(output.hidden_states[0][0][0])[visual]  # what layer 0 gets in the place of visual tokens
        ends = np.cumsum([picture.num_tokens for picture in prompt.pictures])
        hidden = list(zip(*output.hidden_states, strict=True))[:-1] if hidden_states else []  # the last is the output
        return Observation(
            token_ids=prompt.token_ids,
            visual=visual,
            inputs=picture_inputs(prompt.pictures),
            features=[sketch(each) for each in np.split(features, ends[:-1])] if len(ends) else [],
            kept=np.arange(len(prompt.token_ids)),
            tokens=tokens,
            forced=tokens,
            text=self._text(output.sequences[0, len(prompt.token_ids) :]),
            logits=np.stack([_host(logits[0]) for logits in output.logits]),
            cache=[
                sketch(by_token(_host(part[0])))
                for layer in output.past_key_values.layers
                for part in (layer.keys, layer.values)
            ],
            hidden=[sketch(_host(torch.cat([call[0] for call in layer]))) for layer in hidden],
        )

    def _run(self, inputs: Mapping[str, Tensor], max_new_tokens: int, **options: Any) -> Any:
        """transformers' `generate`, greedy."""
        model = self.session.model
        known = {"input_ids", *inspect.signature(model.forward).parameters} - {"attention_mask"}
        taken = {name: tensor.to(self.session.device) for name, tensor in inputs.items() if name in known}
        with torch.no_grad(), enough_memory("cuda"):
            return model.generate(
                **{name: each.to(model.dtype) if each.is_floating_point() else each for name, each in taken.items()},
                attention_mask=torch.ones_like(taken["input_ids"]),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                return_dict_in_generate=True,
                **options,
            )

    def _text(self, tokens: Tensor) -> str:
        """Tokens as an answer's text, which has no space around it."""
        return str(self._processor.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)).strip()


def _processors(folder: Any) -> tuple[Any, Any]:
    """transformers' image processor, and its whole processor, or None where that needs packages that are not here
    (torchvision, for some)."""
    from transformers import AutoImageProcessor, AutoProcessor

    # The back end that the runtime uses: others resize to slightly different pixels.
    images = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil", trust_remote_code=False)
    try:
        whole = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ImportError, OSError, ValueError):
        return images, None
    if not hasattr(whole, "image_processor"):
        return images, None
    whole.image_processor = images
    return images, whole


def _host(tensor: Tensor) -> Floats:
    found: Floats = tensor.detach().float().cpu().numpy()
    return found
