"""Opens what an artefact is compared with. Torch is for the checkpoint alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from iwp_export.engine.files import SUFFIX
from iwp_export.errors import BackendError, DataError
from iwp_export.parity.recording import RECORDING, read_recording
from iwp_export.parity.reference import ParityReference, SessionReference
from iwp_export.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from iwp_export.exporter.loading import Device
    from iwp_export.exporter.plan import Dtype

CHECKPOINT = "checkpoint"


def open_reference(
    pipeline: Pipeline,
    against: str = CHECKPOINT,
    *,
    checkpoint: str | None = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    provider: str = "cpu",
    threads: int | None = None,
) -> ParityReference:
    """Open what an artefact is to be compared with.

    Args:
        pipeline: the artefact.
        against: `checkpoint`; a bundle's folder; an engine, NAME.plan; or a recording, NAME.npz.
        checkpoint: where the checkpoint is; None is where the artefact was exported from.
        device: where torch runs the checkpoint.
        dtype: element type in which torch runs it; see `CheckpointReference`.
        provider, threads: of a bundle, see `Pipeline.open`.

    Raises:
        CheckpointError, BundleError, BackendError, RecordingError: it cannot be opened.
        DataError: `against` is none of these.
        BackendError: also where torch is missing and the checkpoint is asked for.
    """
    if against == CHECKPOINT:
        try:
            from iwp_export.parity.checkpoint import CheckpointReference
        except ImportError as error:
            if str(error.name).startswith("iwp_export"):
                raise  # a bug
            raise BackendError(
                f"comparing with a checkpoint needs torch ({error}); install with: pip install 'iwp-export[export]', "
                "or record the checkpoint where torch is and compare with the recording",
                options=("record", "against"),
            ) from error
        return CheckpointReference(pipeline.manifest, checkpoint, device, dtype)
    path = Path(against)
    if path.suffix == RECORDING:
        return read_recording(path)
    if path.suffix == SUFFIX:
        return SessionReference(Pipeline.open(path), path.name)
    if path.is_dir():
        return SessionReference(Pipeline.open(path, provider=provider, threads=threads), path.absolute().name)
    raise DataError(
        f"nothing to compare with at {against}: give `{CHECKPOINT}`, a bundle's folder, an engine (NAME{SUFFIX}) or a "
        f"recording (NAME{RECORDING})",
        options=("against",),
    )
