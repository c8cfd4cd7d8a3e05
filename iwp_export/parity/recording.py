"""A reference in a file: recorded on a workstation with torch, compared with on a device without.

The file is a numpy archive (NPZ) without Python objects. Its entry `recording` is a sealed JSON document, which lists
the SHA-256 of every other entry. It holds the images themselves, a few hundred kB each, so that a device needs no data
and its own preprocessing is compared too. What does not depend on the keep ratio (prompt, pixels, features, what tokens
are chosen from) is there once for a sample, under its number; the rest is under the numbers of the sample and of the
ratio. Rows of features, states and caches are sketches.
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

from iwp_export.backends.session import Array
from iwp_export.bundle.document import Document
from iwp_export.bundle.outputs import check_output, plain_name
from iwp_export.bundle.recipe import Digest, Name
from iwp_export.bundle.schema import Count, Flaw, Number, above_zero, one_of
from iwp_export.errors import DataError, OutputError, RecordingError, os_reason
from iwp_export.files import whole_file
from iwp_export.parity.figures import LIMITS, Identity
from iwp_export.parity.observation import PROJECTIONS, Choice, Observation, ParityReference, Rows, Sample, samples_of
from iwp_export.progress import progress
from iwp_export.questions import Question
from iwp_export.version import __version__

RECORDING = ".npz"
"""How a recording's name ends."""
DOCUMENT = "recording"
SIZE_LIMIT = 4 << 30
"""Bytes that a recording may hold unpacked: a file that claims more is not read."""
DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, RuntimeError, MemoryError)
"""What reading a damaged archive may raise; an array's head may claim any size."""
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


class Recording(ParityReference):
    """A reference that was recorded; make it with `read_recording`."""

    def __init__(self, info: RecordingInfo, arrays: Mapping[str, Array]) -> None:
        samples = [
            Sample(
                entry.name,
                arrays[f"{i}.prompt"].tobytes().decode(),
                tuple(arrays[f"{i}.image.{j}"].tobytes() for j in range(entry.images)),
            )
            for i, entry in enumerate(info.samples)
        ]
        name, limits = f"recording of {info.reference}", (samples, info.keeps, info.new_tokens)
        super().__init__(name, info.identity, info.dtype, info.hidden_states, *limits)
        self._info, self._arrays = info, arrays
        self._numbers = {(sample.prompt, sample.images): number for number, sample in enumerate(samples)}

    def observe(self, sample: Sample, keep: float, max_new_tokens: int, hidden_states: bool = False) -> Observation:
        keeps, tokens = self._info.keeps, self._info.new_tokens
        if keep not in keeps:
            known = ", ".join(f"{each:g}" for each in keeps)
            raise RecordingError(f"the recording has keep {known}, not {keep:g}")
        if max_new_tokens > tokens:
            text = f"the recording has answers of {tokens} tokens, not {max_new_tokens}"
            raise RecordingError(text, options=("parity_tokens",))
        number = self._numbers.get((sample.prompt, sample.images))
        if number is None:
            raise RecordingError(f"the recording has no sample {sample.name}")
        return unpack(self._arrays, number, keeps.index(keep), max_new_tokens)


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
        reference: the checkpoint.
        questions, keeps, max_new_tokens: see `check_parity`.
        path: NAME.npz; missing folders are made.
        hidden_states: also the states between layers, with which the file is about twice as large.
        force: replace a file that is there already.

    Raises:
        OutputError: the file is there already, or cannot be written.
        DataError: there are no questions, or an image cannot be read.
        RequestError, BackendError: see `ParityReference.observe`.
    """
    path = Path(path)
    where = check_recording(path, force)
    samples = samples_of(questions)
    if not samples:
        raise DataError("there is nothing to record: give questions")
    arrays: dict[str, Array] = {}
    with progress(f"Recording {reference.name}", len(samples) * len(keeps)) as advance:
        for number, sample in enumerate(samples):
            for place, content in enumerate(sample.images):
                arrays[f"{number}.image.{place}"] = np.frombuffer(content, np.uint8)
            for index, keep in enumerate(keeps):
                arrays |= pack(reference.observe(sample, keep, max_new_tokens, hidden_states), number, index)
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
            arrays = {name: archive[name] for name in archive.files}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("an entry is no array")
        info = RECORDING_JSON.from_dict(json.loads(arrays.pop(DOCUMENT).tobytes()), where)
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise RecordingError(f"{where} is damaged or is no recording ({reason}): {REMEDY}") from error
    except OSError as error:
        raise RecordingError(f"cannot read the recording {where}: {os_reason(error)}") from error
    for name in info.arrays.keys() ^ arrays.keys():
        raise RecordingError(f"{where} is damaged: its entries are not those that it lists ({name}): {REMEDY}")
    for name, array in arrays.items():
        if _digest(array) != info.arrays[name]:
            raise RecordingError(f"{where} is damaged: the content of {name} changed: {REMEDY}")
    try:
        return Recording(info, arrays)
    except (KeyError, UnicodeDecodeError) as error:
        raise RecordingError(f"{where} is damaged: an entry is missing or no text ({error}): {REMEDY}") from error


def _digest(array: Array) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


ONCE = ("token_ids", "visual", "features")
"""What does not depend on the keep ratio, beside inputs and choice."""
STEPS = ("tokens", "forced", "logits")
"""What each token of an answer has."""
KINDS = {"token_ids": "i", "visual": "b", "kept": "i", "tokens": "i", "forced": "i", "logits": "f"}
"""The numpy kind of arrays of an observation."""


def pack(found: Observation, sample: int, ratio: int) -> dict[str, Array]:
    """An observation as arrays by name."""
    once: dict[str, Any] = {name: getattr(found, name) for name in ONCE}
    once["images"] = np.array(len(found.features.lengths), np.int64)
    once |= {f"input.{name}": value for name, value in found.inputs.items()}
    if found.choice is not None:
        alike = found.choice.alike  # symmetric: half of it will do
        once |= {"importance": found.choice.importance, "alike": alike[np.triu_indices(len(alike))]}
    here = {name: getattr(found, name) for name in ("kept", *STEPS, "cache", "hidden")}
    named = {f"{sample}.{name}": value for name, value in once.items()}
    named |= {f"{sample}.{ratio}.{name}": value for name, value in here.items()}
    arrays: dict[str, Array] = {}
    for name, value in named.items():
        parts = {f".{part}": each for part, each in vars(value).items()} if isinstance(value, Rows) else {"": value}
        arrays |= {f"{name}{part}": each for part, each in parts.items()}
    return arrays


def unpack(arrays: Mapping[str, Array], sample: int, ratio: int, new_tokens: int) -> Observation:
    """The observation, cut to `new_tokens` tokens of the answer.

    Raises:
        RecordingError: an array is missing, or does not fit the others.
    """
    once, here = f"{sample}.", f"{sample}.{ratio}."
    try:
        found: dict[str, Any] = {}
        for name, kind in KINDS.items():
            found[name] = array = arrays[(once if name in ONCE else here) + name]
            if array.dtype.kind != kind or array.ndim != (2 if kind == "f" else 1) or 0 in array.shape:
                raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
        kept, size, total = found["kept"], len(found["token_ids"]), len(found["tokens"])
        if size != len(found["visual"]) or any(len(found[name]) != total for name in STEPS):
            raise ValueError("arrays of tokens differ in length")
        if np.any(np.diff(kept) <= 0) or kept[0] < 0 or kept[-1] >= size:
            raise ValueError("kept does not rise within the prompt")
        found |= {name: found[name][:new_tokens] for name in STEPS}
        found |= {name: _rows(arrays, here + name, max(0, total - new_tokens)) for name in ("cache", "hidden")}
        found["features"] = _rows(arrays, f"{once}features")
        if int(arrays[f"{once}images"]) != len(found["features"].lengths) or len(found["cache"].lengths) % 2:
            raise ValueError("it has not the features of each image, or keys without values")
        begin = f"{once}input."
        inputs = dict.fromkeys(
            ".".join(name.removeprefix(begin).split(".")[:2]) for name in arrays if begin in name[: len(begin)]
        )
        found["inputs"] = {
            name: arrays[begin + name] if begin + name in arrays else _rows(arrays, begin + name)
            for name in inputs
            if name.split(".")[0].isdecimal()
        }
        if f"{once}importance" in arrays:
            importance, half = arrays[f"{once}importance"], arrays[f"{once}alike"]
            upper = np.zeros((len(importance), len(importance)), np.float32)
            upper[np.triu_indices(len(importance))] = half
            found["choice"] = Choice(importance, upper + np.triu(upper, 1).T)
        return Observation(**found)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise RecordingError(f"the recording is damaged: sample {sample}, {error}: record again") from error


def _rows(arrays: Mapping[str, Array], name: str, without_last: int = 0) -> Rows:
    """Rows, but for so many at each tensor's end.

    Raises:
        ValueError: they are none.
    """
    sketch, norm, lengths = (arrays[f"{name}.{part}"] for part in ("sketch", "norm", "lengths"))
    shapes = sketch.shape[1:] == (PROJECTIONS,) or not len(sketch)
    if (sketch.dtype.kind, norm.dtype.kind, lengths.dtype.kind) != ("f", "f", "i") or not shapes or norm.ndim != 1:
        raise ValueError(f"{name} is no sketch")
    if np.any(lengths < without_last) or {len(sketch), len(norm)} != {int(lengths.sum())}:
        raise ValueError(f"{name} has other rows than it says")
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(norm)) > without_last
    return Rows(sketch[left], norm[left], lengths - without_last)
