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
from iwp_export.bundle.outputs import check_outputs, plain_name
from iwp_export.bundle.recipe import Digest, Name
from iwp_export.bundle.schema import Count, Flaw, Number, above_zero, one_of
from iwp_export.errors import DataError, OutputError, RecordingError, in_one_line, os_reason
from iwp_export.files import whole_file
from iwp_export.parity.figures import LIMITS, Identity
from iwp_export.parity.observation import PROJECTIONS, Choice, Observation, ParityReference, Sample, samples_of
from iwp_export.progress import progress
from iwp_export.questions import Question
from iwp_export.version import __version__

RECORDING = ".npz"
"""How a recording's name ends."""
DOCUMENT = "recording"
SIZE_LIMIT = 4 << 30
"""Bytes that a recording may hold unpacked: a file that claims more is not read."""
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    EOFError,
    KeyError,
    AttributeError,
    TypeError,
    RuntimeError,
    MemoryError,
)
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
        self._info, self._arrays, self._known = info, arrays, samples

    def observe(self, sample: Sample, keep: float, max_new_tokens: int, hidden_states: bool = False) -> Observation:
        tokens = self._info.new_tokens
        if max_new_tokens > tokens:
            text = f"the recording has answers of {tokens} tokens, not {max_new_tokens}"
            raise RecordingError(text, options=("parity_tokens",))
        return unpack(self._arrays, self._known.index(sample), self._info.keeps.index(keep), max_new_tokens)


def check_recording(path: Path, force: bool = False) -> None:
    """Refuse, before minutes of work, a file that cannot be written or would not be found again.

    Raises:
        OutputError: its name does not end in .npz, or see `check_outputs`.
    """
    check_outputs([path], force, kinds=(RECORDING,), noun="recording", option="record")


def record(
    reference: ParityReference,
    questions: Sequence[Question],
    keeps: Sequence[float],
    path: Path,
    max_new_tokens: int,
    hidden_states: bool = False,
) -> Path:
    """Record what a reference makes of questions.

    Args:
        reference: the checkpoint.
        questions, keeps, max_new_tokens: see `check_parity`.
        path: NAME.npz, replaced if it is there: see `check_recording`; missing folders are made.
        hidden_states: also the states between layers, with which the file is about twice as large.

    Raises:
        OutputError: the file cannot be written.
        DataError: there are no questions, or an image cannot be read.
        RequestError, BackendError: see `ParityReference.observe`.
    """
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
        raise OutputError(f"Cannot write {path}: {flaw}") from flaw
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {os_reason(error)}", options=("record",)) from error
    return path


def read_recording(path: Path | str) -> Recording:
    """Read a recording.

    Raises:
        RecordingError: it is missing, damaged, no recording, or of another version.
    """
    where = plain_name(Path(path), RecordingError)
    if not Path(path).is_file():
        raise RecordingError(f"there is no recording {where}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            size = sum(entry.file_size for entry in archive.zip.infolist())
            if size > SIZE_LIMIT:
                raise RecordingError(f"{where} is no recording: it claims to hold {size:,} bytes")
            if DOCUMENT not in archive.files:
                raise RecordingError(f"{where} is not a recording: it has no entry {DOCUMENT!r}")
            arrays = {name: archive[name] for name in archive.files}
        info = RECORDING_JSON.from_dict(json.loads(arrays.pop(DOCUMENT).tobytes()), where)
        for name in info.arrays.keys() ^ arrays.keys():
            raise ValueError(f"its entries are not those that it lists: {name}")
        for name, array in arrays.items():
            if _digest(array) != info.arrays[name]:
                raise ValueError(f"the content of {name} changed")
        return Recording(info, arrays)
    except DAMAGE as error:
        raise RecordingError(f"{where} is damaged or is no recording ({in_one_line(error)[:80]}): {REMEDY}") from error
    except OSError as error:
        raise RecordingError(f"cannot read the recording {where}: {os_reason(error)}") from error


def _digest(array: Array) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


DIMENSIONS = {
    "token_ids": ("i", "S"),
    "visual": ("b", "S"),
    "kept": ("i", "K"),
    "tokens": ("i", "T"),
    "forced": ("i", "T"),
    "logits": ("f", "TV"),
}
"""The plain arrays of an observation: numpy's kind, and a letter for each length, which is the same in all of them."""
ONCE = ("token_ids", "visual")


def pack(found: Observation, sample: int, ratio: int) -> dict[str, Array]:
    """An observation as arrays by name."""
    once, here = f"{sample}.", f"{sample}.{ratio}."
    arrays = {(once if name in ONCE else here) + name: getattr(found, name) for name in DIMENSIONS}
    arrays[f"{once}images"] = np.array(len(found.features), np.int64)
    lists = {f"{once}features": found.features, f"{here}cache": found.cache, f"{here}hidden": found.hidden}
    for name, array in found.inputs.items():
        if array.dtype.kind == "f":
            lists[f"{once}input.{name}"] = [array]
        else:
            arrays[f"{once}input.{name}"] = array
    for name, sketches in lists.items():
        rows = np.concatenate([np.zeros((0, 1 + PROJECTIONS), np.float32), *sketches])
        arrays |= {f"{name}.sketch": rows[:, 1:], f"{name}.norm": rows[:, 0]}
        arrays[f"{name}.lengths"] = np.array([len(each) for each in sketches], np.int64)
    if found.choice is not None:
        alike = found.choice.alike  # symmetric: half of it will do
        arrays |= {f"{once}importance": found.choice.importance, f"{once}alike": alike[np.triu_indices(len(alike))]}
    return arrays


def unpack(arrays: Mapping[str, Array], sample: int, ratio: int, new_tokens: int) -> Observation:
    """The observation, cut to `new_tokens` tokens of the answer.

    Raises:
        RecordingError: an array is missing, or does not fit the others.
    """
    once, here = f"{sample}.", f"{sample}.{ratio}."
    try:
        found: dict[str, Any] = {}
        sizes: dict[str, int] = {}
        for name, (kind, letters) in DIMENSIONS.items():
            found[name] = array = arrays[(once if name in ONCE else here) + name]
            lengths = dict(zip(letters, array.shape, strict=True))
            if array.dtype.kind != kind or 0 in array.shape or {**lengths, **sizes} != {**sizes, **lengths}:
                raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
            sizes |= lengths
        kept = found["kept"]
        if np.any(np.diff(kept) <= 0) or kept[0] < 0 or kept[-1] >= sizes["S"]:
            raise ValueError("kept does not rise within the prompt")
        unused = max(0, sizes["T"] - new_tokens)
        found |= {name: found[name][:new_tokens] for name in ("tokens", "forced", "logits")}
        found["features"] = _sketches(arrays, f"{once}features")
        found |= {
            name: [rows[: len(rows) - unused] for rows in _sketches(arrays, here + name, unused)]
            for name in ("cache", "hidden")
        }
        if int(arrays[f"{once}images"]) != len(found["features"]) or len(found["cache"]) % 2:
            raise ValueError("it has not the features of each image, or keys without values")
        found["inputs"] = _inputs(arrays, f"{once}input.")
        if f"{once}importance" in arrays:
            importance, half = arrays[f"{once}importance"], arrays[f"{once}alike"]
            upper = np.zeros((len(importance), len(importance)), np.float32)
            upper[np.triu_indices(len(importance))] = half
            found["choice"] = Choice(importance, upper + np.triu(upper, 1).T)
        return Observation(**found)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise RecordingError(f"the recording is damaged: sample {sample}, {error}: record again") from error


def _inputs(arrays: Mapping[str, Array], begin: str) -> dict[str, Array]:
    """The arrays and the sketches whose names begin so; an input of an image is called IMAGE.NAME."""
    found: dict[str, Array] = {}
    for name in (name.removeprefix(begin) for name in arrays if name.startswith(begin)):
        number, key, *part = name.split(".")
        if int(number) >= 0 and not part:
            found[name] = arrays[begin + name]
        elif part == ["norm"]:
            [found[f"{number}.{key}"]] = _sketches(arrays, f"{begin}{number}.{key}")
    return found


def _sketches(arrays: Mapping[str, Array], name: str, least: int = 0) -> list[Array]:
    """Sketches of several tensors, which have so many rows each at least.

    Raises:
        ValueError: they are none.
    """
    rows, norm, lengths = (arrays[f"{name}.{part}"] for part in ("sketch", "norm", "lengths"))
    if (rows.dtype.kind, norm.dtype.kind, lengths.dtype.kind) != ("f", "f", "i") or rows.shape[1:] != (PROJECTIONS,):
        raise ValueError(f"{name} is no sketch")
    if np.any(lengths < least) or {rows.shape[:1], norm.shape} != {(int(lengths.sum()),)}:
        raise ValueError(f"{name} has other rows than it says")
    return np.split(np.c_[norm, rows], np.cumsum(lengths)[:-1]) if len(lengths) else []
