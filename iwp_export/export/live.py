"""A checkpoint behind the runtime's interfaces, run by torch: no export in between."""

from __future__ import annotations

import contextlib
from typing import Literal

from iwp_export.backends.torch.session import TorchSession
from iwp_export.bundle.manifest import Manifest
from iwp_export.errors import BackendError
from iwp_export.export.plan import ExportPlan
from iwp_export.runtime.processor import Processor

Device = Literal["cpu", "cuda"]


def open_live(plan: ExportPlan, dtype: str, device: Device = "cpu") -> tuple[TorchSession, Manifest, Processor]:
    """Load a checkpoint's model.

    Args:
        plan: of the checkpoint, whose weights are fetched if they are not here.
        dtype: element type of weights and activations, by torch's name.
        device: where it runs.

    Returns:
        The session, what an export's manifest would say of it, and its processor.

    Raises:
        CheckpointError: the weights cannot be fetched or read.
        BackendError: there is no such device, or it has not the memory.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError("torch finds no CUDA device on this machine; use the CPU", options=("device",))
    checkpoint = plan.checkpoint.with_weights()
    with _enough_memory(device):
        model = checkpoint.load_model(dtype).to(device)
    session = TorchSession(model, checkpoint.family, plan.settings)
    manifest = Manifest(plan.model, plan.settings, plan.decoder, plan.vision, {}, generation=plan.generation)
    return session, manifest, Processor(checkpoint.folder, plan.vision, checkpoint.family)


@contextlib.contextmanager
def _enough_memory(device: Device):  # type: ignore[no-untyped-def]
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise BackendError(f"the model does not fit into the memory of {device}: {error}".splitlines()[0]) from error
