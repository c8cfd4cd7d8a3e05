"""The checkpoint behind an artefact, in torch: transformers' own model, and the reference that prunes as it does."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from iwp_export.backends.session import Floats, Ints
from iwp_export.backends.torch.seen import Condense, SelectFor
from iwp_export.backends.torch.session import TorchSession
from iwp_export.bundle.manifest import Manifest
from iwp_export.export.checkpoint import Checkpoint, open_checkpoint
from iwp_export.pruning.settings import PruningSettings
from iwp_export.runtime.images import load_image
from iwp_export.runtime.model import LoadedModel
from iwp_export.runtime.pipeline import Pipeline


class Reference:
    """A checkpoint's transformers model, run as transformers does and as the torch reference of pruning.

    Args:
        checkpoint: the artefact's.
        dtype: element type of weights and activations.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: str = "float32") -> None:
        from transformers import AutoImageProcessor

        self.model = checkpoint.load_model(dtype)
        self.family = checkpoint.family
        # The back end that the runtime uses: others resize to slightly different pixels.
        self._images = AutoImageProcessor.from_pretrained(
            checkpoint.folder, local_files_only=True, backend="pil", trust_remote_code=False
        )

    @classmethod
    def of(cls, manifest: Manifest, checkpoint: str | None = None, dtype: str = "float32") -> Reference:
        """The reference of an artefact.

        Args:
            manifest: the artefact's.
            checkpoint: where the checkpoint is, if not where it was exported from.
            dtype: element type of weights and activations.

        Raises:
            CheckpointError: the checkpoint is not there.
        """
        if checkpoint is None:
            return cls(open_checkpoint(manifest.model.source, revision=manifest.model.revision), dtype)
        return cls(open_checkpoint(checkpoint), dtype)

    def generate(self, token_ids: Ints, images: Sequence[Path], max_new_tokens: int) -> tuple[list[int], list[Floats]]:
        """Greedy tokens of transformers' `generate`, and the logits of each.

        The model gets what the checkpoint's image processor makes of the images, so it shares only the token ids with
        what it is compared with.
        """
        import torch

        outputs = dict(self._images(images=[load_image(image) for image in images], return_tensors="pt"))
        known = inspect.signature(self.model.forward).parameters
        inputs = {
            name: value.to(self.model.dtype) if value.is_floating_point() else value
            for name, value in outputs.items()
            if name in known
        }
        ids = torch.from_numpy(token_ids)[None]
        output: Any = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = output.sequences[0, ids.shape[1] :].tolist()
        return tokens, [logits[0].float().numpy() for logits in output.logits]

    def pruned(
        self,
        pipeline: Pipeline,
        settings: PruningSettings,
        select_for: SelectFor | None = None,
        condense: Condense | None = None,
    ) -> Pipeline:
        """An artefact's pipeline with this model in torch in the place of its graphs.

        Args:
            pipeline: gives manifest and processor.
            settings: where and how to prune.
            select_for: the pruning op of each call; IWP's with `settings` if left out.
            condense: the features that stand for a call's image, where a rival works before layer 0.
        """
        manifest = replace(pipeline.manifest, pruning=settings)
        session = TorchSession(self.model, self.family, settings, select_for, condense)
        return Pipeline(LoadedModel(manifest, pipeline.processor, session))
