"""A reference in a file: recorded on a workstation with torch, compared with on a device without.

The file is a numpy archive (NPZ) without Python objects. Its entry `recording` is a sealed JSON document, which lists
the SHA-256 of every other entry. It holds the images themselves, a few hundred kB each, so that a device needs no data
and its own preprocessing is compared too. Rows of features, states and caches are sketches.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from iwp_export.backends.session import Array, Ints
from iwp_export.bundle.document import Document, check_output, plain_name
from iwp_export.bundle.recipe import Digest, Name
from iwp_export.bundle.schema import Count, Flaw, Number, above_zero, one_of
from iwp_export.errors import DataError, OutputError, RecordingError, os_reason
from iwp_export.files import whole_file
from iwp_export.parity.identity import Identity
from iwp_export.parity.limits import LIMITS
from iwp_export.parity.observation import Observation
from iwp_export.parity.packing import pack, unpack
from iwp_export.parity.reference import ParityReference
from iwp_export.parity.sample import Sample, samples_of
from iwp_export.progress import progress
from iwp_export.pruning.settings import check_keep
from iwp_export.questions import Question
from iwp_export.version import __version__

RECORDING = ".npz"
"""How a recording's name ends."""
DOCUMENT = "recording"
SIZE_LIMIT = 4 << 30
"""Bytes that a recording may hold unpacked: a file that claims more is not read."""
REMEDY = "copy it again, or record again"


@dataclass(frozen=True)
class RecordedSample:
    """What was asked: see `Sample`; the prompt, which may have several lines, and the images are other entries."""

    name: Name
    images: Number


@dataclass(frozen=True)
class RecordingInfo:
    """The document in a recording.

    Attributes:
        reference: what was recorded.
        identity: of its checkpoint and settings.
        dtype: element type in which it computed.
        keeps: the keep ratios.
        new_tokens: tokens of each answer.
        hidden_states: why states between layers are not there; empty if they are.
        samples: what was asked.
        tools: versions of what made it.
        arrays: SHA-256 of the other entries, by name.
    """

    reference: Name
    identity: Identity
    dtype: Annotated[str, one_of(*LIMITS)]
    keeps: tuple[Annotated[float, above_zero(1)], ...]
    new_tokens: Count
    hidden_states: str
    samples: tuple[RecordedSample, ...]
    tools: Mapping[str, str]
    arrays: Mapping[str, Digest]


RECORDING_JSON = Document(
    RecordingInfo,
    "iwp-recording",
    noun="recording",
    foreign="is not a recording: it",
    remedy=REMEDY,
    command=lambda data, where: "record again",
    version=1,
    error=RecordingError,
)


class Recording:
    """A reference that was recorded; make it with `read_recording`."""

    def __init__(self, info: RecordingInfo, arrays: Mapping[str, Array]) -> None:
        self._info, self._arrays = info, arrays
        self.identity, self.dtype, self.keeps = info.identity, info.dtype, info.keeps
        self.name = f"recording of {info.reference}"
        self.no_hidden_states = info.hidden_states
        self.new_tokens = info.new_tokens
        self.samples = [
            Sample(
                entry.name,
                arrays[f"{i}.prompt"].tobytes().decode(),
                tuple(arrays[f"{i}.image.{j}"].tobytes() for j in range(entry.images)),
            )
            for i, entry in enumerate(info.samples)
        ]

    def observe(self, sample: Sample, keep: float, max_new_tokens: int, hidden_states: bool = False) -> Observation:
        """See `ParityReference.observe`."""
        if keep not in self.keeps:
            raise RecordingError(
                f"the recording has keep {', '.join(f'{k:g}' for k in self.keeps)}, not {keep:g}", options=("keep",)
            )
        if max_new_tokens > self.new_tokens:
            raise RecordingError(
                f"the recording has answers of {self.new_tokens} tokens, not {max_new_tokens}",
                options=("max_new_tokens",),
            )
        for number, known in enumerate(self.samples):
            if (known.prompt, known.images) == (sample.prompt, sample.images):
                return unpack(self._arrays, number, self.keeps.index(keep), max_new_tokens)
        raise RecordingError(f"the recording has no sample {sample.name}")

    def observe_choosing(
        self, sample: Sample, keep: float, forced: Sequence[int], kept: Ints, hidden_states: bool = False
    ) -> None:
        """A recording cannot be asked what it was not asked then."""


def record(
    reference: ParityReference,
    questions: Sequence[Question],
    keeps: Sequence[float],
    path: Path | str,
    max_new_tokens: int,
    hidden_states: bool = False,
    force: bool = False,
) -> Path:
    """Record what a reference makes of questions.

    Args:
        reference: the checkpoint, as a rule.
        questions: what is asked.
        keeps: fractions of the visual tokens that stay.
        path: NAME.npz; missing folders are made.
        max_new_tokens: tokens of each answer.
        hidden_states: also the states between layers, with which the file is about twice as large.
        force: replace a file that is there already.

    Returns:
        `path`.

    Raises:
        OutputError: the file is there already, or cannot be written.
        DataError: there are no questions, or an image cannot be read.
        SettingsError, RequestError, BackendError: see `ParityReference.observe`.
    """
    path = Path(path)
    where = check_recording(path, force)
    samples = samples_of(questions)
    if not samples or not keeps:
        raise DataError("there is nothing to record: give questions and keep ratios")
    for keep in keeps:
        check_keep(keep)
    if hidden_states and reference.no_hidden_states:
        raise DataError(f"hidden states cannot be recorded: {reference.no_hidden_states}", options=("hidden_states",))
    arrays: dict[str, Array] = {}
    with progress(f"Recording {reference.name}", len(samples) * len(keeps)) as advance:
        for number, sample in enumerate(samples):
            for place, content in enumerate(sample.images):
                arrays[f"{number}.image.{place}"] = np.frombuffer(content, np.uint8)
            for index, keep in enumerate(keeps):
                found = reference.observe(sample, keep, max_new_tokens, hidden_states)
                arrays.update(pack(found, number, index))
                advance(1)
            arrays[f"{number}.prompt"] = np.frombuffer(sample.prompt.encode(), np.uint8)  # observed, so it is a text
    info = RecordingInfo(
        reference=reference.name,
        identity=reference.identity,
        dtype=reference.dtype,
        keeps=tuple(map(float, keeps)),
        new_tokens=max_new_tokens,
        hidden_states="" if hidden_states else "the recording was made without them",
        samples=tuple(RecordedSample(sample.name, len(sample.images)) for sample in samples),
        tools={"iwp-export": __version__, "numpy": np.__version__},
        arrays={name: _digest(array) for name, array in arrays.items()},
    )
    try:
        text = RECORDING_JSON.to_text(info).encode()
        with whole_file(path) as file, file.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **{DOCUMENT: np.frombuffer(text, np.uint8), **arrays})
    except Flaw as flaw:
        raise OutputError(f"Cannot write {where}: {flaw}") from flaw
    except OSError as error:
        raise OutputError(f"Cannot write {where}: {os_reason(error)}", options=("record",)) from error
    return path


def check_recording(path: Path, force: bool = False) -> str:
    """Refuse, before minutes of work, a file that cannot be written or would not be found again; returns its name.

    Raises:
        OutputError: its name does not end in .npz, or see `check_output`.
    """
    if path.suffix != RECORDING:
        raise OutputError(f"a recording's name ends in {RECORDING}, got {path}", options=("record",))
    try:
        return check_output(path, force)
    except OutputError as error:
        error.options = tuple("record" if name == "output" else name for name in error.options)
        raise


def read_recording(path: Path | str) -> Recording:
    """Read a recording.

    Raises:
        RecordingError: it is missing, damaged, no recording, or of another version.
    """
    path = Path(path)
    where = plain_name(path, RecordingError)
    if not path.is_file():
        raise RecordingError(f"there is no recording {where}")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > SIZE_LIMIT:
            raise RecordingError(f"{where} is no recording: it claims to hold {size:,} bytes")
        with np.load(path, allow_pickle=False) as archive:
            if DOCUMENT not in archive.files:
                raise RecordingError(f"{where} is not a recording: it has no entry {DOCUMENT!r}")
            entries = {name: archive[name] for name in archive.files}
        if not all(isinstance(entry, np.ndarray) for entry in entries.values()):
            raise ValueError("an entry is no array")
        info = RECORDING_JSON.from_dict(json.loads(entries[DOCUMENT].tobytes()), where)
        arrays = {name: entry for name, entry in entries.items() if name != DOCUMENT}
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        EOFError,
        KeyError,
        NotImplementedError,
        RecursionError,
        MemoryError,  # an array's head may claim any size
    ) as error:
        raise RecordingError(f"{where} is damaged or is no recording ({_short(error)}): {REMEDY}") from error
    except OSError as error:
        raise RecordingError(f"cannot read the recording {where}: {os_reason(error)}") from error
    for name in info.arrays.keys() ^ arrays.keys():
        raise RecordingError(f"{where} is damaged: its entries are not those that it lists ({name}): {REMEDY}")
    for name, array in arrays.items():
        if _digest(array) != info.arrays[name]:
            raise RecordingError(f"{where} is damaged: the content of {name} changed: {REMEDY}")
    try:
        return Recording(info, arrays)
    except KeyError as error:
        raise RecordingError(f"{where} is damaged: it lacks {error}: {REMEDY}") from error
    except UnicodeDecodeError as error:
        raise RecordingError(f"{where} is damaged: a prompt is no text: {REMEDY}") from error


def _digest(array: npt.NDArray[Any]) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__
