"""A checkpoint's model, loaded whole and run by torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from iwp_export.backends.torch.session import TorchSession
from iwp_export.bundle.manifest import Manifest
from iwp_export.errors import BackendError, SettingsError
from iwp_export.exporter.plan import ExportPlan
from iwp_export.runtime.processor import Processor
from iwp_export.settings import Device


def open_live(plan: ExportPlan, dtype: str, device: Device = "cpu") -> tuple[TorchSession, Manifest, Processor]:
    """Load a checkpoint's model.

    Args:
        plan: of the checkpoint, whose weights are fetched if they are not here.
        dtype: element type of weights and activations, by torch's name.

    Returns:
        The session, what an export's manifest would say of it, and its processor.

    Raises:
        CheckpointError: the weights cannot be fetched or read.
        BackendError: there is no such device, or it has not the memory.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError("torch finds no CUDA device on this machine; use the CPU", options=("device",))
    checkpoint = plan.checkpoint.with_weights()
    with enough_memory(device):
        model = checkpoint.load_model(dtype).to(device)
    session = TorchSession(model, checkpoint.family, plan.settings)
    manifest = Manifest(plan.model, plan.settings, plan.decoder, plan.vision, {}, generation=plan.generation)
    return session, manifest, Processor(checkpoint.folder, plan.vision, checkpoint.family)


def limit_threads(threads: int) -> None:
    """Let torch use so many threads of the CPU, but no more than it has: far more bring a machine to a stand.

    Raises:
        SettingsError: not a number of 1 or more.
    """
    if threads < 1:
        raise SettingsError(f"threads must be 1 or more, got {threads}", options=("threads",))
    torch.set_num_threads(min(threads, os.cpu_count() or 1))


@contextlib.contextmanager
def enough_memory(device: Device) -> Iterator[None]:
    """Say in one line that a GPU's memory does not suffice for the block.

    Raises:
        BackendError: it does not.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise BackendError(f"the model does not fit into the memory of {device}: {error}".splitlines()[0]) from error
