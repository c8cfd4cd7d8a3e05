"""The checkpoint behind an artefact, in torch, pruned as the artefact prunes or by a rival."""

from __future__ import annotations

from dataclasses import replace

from iwp_export.backends.torch.seen import Condense, SelectFor
from iwp_export.backends.torch.session import TorchSession
from iwp_export.bundle.manifest import Manifest
from iwp_export.export.checkpoint import Checkpoint, open_checkpoint
from iwp_export.pruning.settings import PruningSettings
from iwp_export.runtime.model import LoadedModel
from iwp_export.runtime.pipeline import Pipeline


class Reference:
    """A checkpoint's transformers model, run as the torch reference of pruning.

    Args:
        checkpoint: the artefact's.
        dtype: element type of weights and activations.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: str = "float32") -> None:
        self.model = checkpoint.load_model(dtype)
        self.family = checkpoint.family

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
