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
import numpy.typing as npt

from iwp_export.backends.session import Array, Ints
from iwp_export.bundle.document import Document
from iwp_export.bundle.outputs import check_outputs, plain_name
from iwp_export.bundle.recipe import Digest, Name
from iwp_export.bundle.schema import Count, Flaw, Number, above_zero, one_of
from iwp_export.errors import DataError, OutputError, RecordingError, in_one_line, os_reason
from iwp_export.files import whole_file
from iwp_export.parity.figures import LIMITS, Identity
from iwp_export.parity.observation import PROJECTIONS, Choice, Kind, Observation, ParityReference, Sample
from iwp_export.parity.probes import with_probes
from iwp_export.progress import progress
from iwp_export.questions import Question
from iwp_export.version import __version__

RECORDING = ".npz"
"""How a recording's name ends."""
DOCUMENT = "recording"
SIZE_LIMIT = 4 << 30
"""Bytes that a recording may hold unpacked: a file that claims more is not read."""
SMALL, LARGEST_RATIO = 16 << 20, 20
"""A file that claims to become larger than the first, and by more than the second, is not read: right ones, whose
numbers are as good as random, shrink to a half."""
VOCABULARY = "vocabulary"
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
    kind: Kind


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
    version=2,
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
                entry.kind,
            )
            for i, entry in enumerate(info.samples)
        ]
        name, limits = f"recording of {info.reference}", (samples, info.keeps, info.new_tokens)
        super().__init__(name, info.identity, info.dtype, info.hidden_states, *limits)
        self._info, self._arrays, self._known = info, arrays, samples

    def check(self) -> None:
        """Raise ValueError or KeyError where what is compared first is not there, or is of another kind."""
        if self.vocabulary().dtype != np.uint32 or self.vocabulary().ndim != 1:
            raise ValueError("its vocabulary is no list of checksums")
        for sample in self._known:
            if sample.kind == "seen" and (self.see(sample)[0].dtype.kind, self.see(sample)[0].ndim) != ("i", 1):
                raise ValueError(f"the prompt of {sample.name} is no list of tokens")

    def see(self, sample: Sample) -> tuple[Ints, Mapping[str, Array]]:
        number = self._known.index(sample)
        return self._arrays[f"{number}.token_ids"], _inputs(self._arrays, f"{number}.input.")

    def vocabulary(self) -> npt.NDArray[np.uint32]:
        found: npt.NDArray[np.uint32] = self._arrays[VOCABULARY]
        return found

    def observe(self, sample: Sample, keep: float, max_new_tokens: int, hidden_states: bool = False) -> Observation:
        tokens = self._info.new_tokens
        if max_new_tokens != tokens:
            text = f"the recording has answers of {tokens} tokens, not {max_new_tokens}"
            raise RecordingError(text, options=("parity_tokens",))
        number, ratio = self._known.index(sample), self._info.keeps.index(keep)
        return unpack(self._arrays, number, ratio, self.dtype, self.identity.decoder.vocab_size)


def check_recording(path: Path, force: bool = False, inputs: Sequence[Path | str | None] = ()) -> None:
    """Refuse, before minutes of work, a file that must not be written or would not be found again.

    Raises:
        OutputError: its name does not end in .npz, or see `check_outputs`.
    """
    check_outputs([path], force, inputs, kinds=(RECORDING,), noun="recording", option="record")


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
    samples, _ = with_probes(questions, reference, max_new_tokens)
    if not samples:
        raise DataError("there is nothing to record: give questions")
    arrays: dict[str, Array] = {VOCABULARY: reference.vocabulary()}
    runs = [(n, i) for n, each in enumerate(samples) for i, keep in enumerate(keeps) if each.is_run(keep, keeps)]
    with progress(f"Recording {reference.name}", len(runs)) as advance:
        for number, index in runs:
            found = reference.observe(samples[number], keeps[index], max_new_tokens, hidden_states)
            arrays |= pack(found, number, index)
            advance(1)
    for number, sample in enumerate(samples):
        if sample.kind == "seen":
            ids, inputs = reference.see(sample)
            arrays |= {f"{number}.token_ids": ids, **_packed(f"{number}.input.", inputs)}
        for place, content in enumerate(sample.images):
            arrays[f"{number}.image.{place}"] = np.frombuffer(content, np.uint8)
        arrays[f"{number}.prompt"] = np.frombuffer(sample.prompt.encode(), np.uint8)  # observed, so it is a text
    info = RecordingInfo(
        reference=reference.name,
        identity=reference.identity,
        dtype=reference.dtype,
        keeps=tuple(map(float, keeps)),
        new_tokens=max_new_tokens,
        hidden_states="" if hidden_states else "the recording was made without them",
        samples=tuple(RecordedSample(each.name, len(each.images), each.kind) for each in samples),
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
            if size > min(SIZE_LIMIT, max(SMALL, LARGEST_RATIO * Path(path).stat().st_size)):
                raise RecordingError(f"{where} is no recording: it claims to hold {size:,} bytes")
            if DOCUMENT not in archive.files:
                raise RecordingError(f"{where} is not a recording: it has no entry {DOCUMENT!r}")
            info = RECORDING_JSON.from_dict(json.loads(archive[DOCUMENT].tobytes()), where)
            for name in info.arrays.keys() ^ set(archive.files) ^ {DOCUMENT}:
                raise ValueError(f"its entries are not those that it lists: {name}")
            arrays = {name: archive[name] for name in info.arrays}
        for name, array in arrays.items():
            if _digest(array) != info.arrays[name]:
                raise ValueError(f"the content of {name} changed")
        recording = Recording(info, arrays)
        recording.check()
        return recording
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
    arrays |= _packed(f"{once}input.", found.inputs) | {f"{here}text": np.frombuffer(found.text.encode(), np.uint8)}
    for name, sketches in lists.items():
        arrays |= _flat(name, sketches)
    if found.choice is not None:
        alike = found.choice.alike  # symmetric: half of it will do
        arrays |= {f"{once}importance": found.choice.importance, f"{once}alike": alike[np.triu_indices(len(alike))]}
    return arrays


def _packed(begin: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """See `_inputs`."""
    arrays: dict[str, Array] = {}
    for name, array in inputs.items():
        arrays |= _flat(begin + name, [array]) if array.dtype.kind == "f" else {begin + name: array}
    return arrays


def _flat(name: str, sketches: Sequence[Array]) -> dict[str, Array]:
    """See `_sketches`."""
    rows = np.concatenate([np.zeros((0, 1 + PROJECTIONS), np.float32), *sketches])
    lengths = np.array([len(each) for each in sketches], np.int64)
    return {f"{name}.sketch": rows[:, 1:], f"{name}.norm": rows[:, 0], f"{name}.lengths": lengths}


def unpack(arrays: Mapping[str, Array], sample: int, ratio: int, dtype: str, vocabulary: int) -> Observation:
    """The observation.

    Args:
        arrays: by name.
        sample, ratio: its numbers.
        dtype: in which the reference says that it computed.
        vocabulary: of the model.

    Raises:
        RecordingError: an array is missing, does not fit the others, or has values that it cannot have.
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
        for name, ids in (
            ("token_ids", found["token_ids"][~found["visual"]]),
            *((n, found[n]) for n in ("tokens", "forced")),
        ):
            if ids.min(initial=0) < 0 or ids.max(initial=0) >= vocabulary:
                raise ValueError(f"{name} has a token beyond the vocabulary of {vocabulary:,}")
        if not _is_of(found["logits"], dtype):
            raise ValueError(f"its logits are finer than {dtype}, in which it says that it computed")
        found["text"] = arrays[f"{here}text"].tobytes().decode()
        found["features"] = _sketches(arrays, f"{once}features")
        found |= {name: _sketches(arrays, here + name) for name in ("cache", "hidden")}
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


def _is_of(logits: Array, dtype: str) -> bool:
    """Whether numbers float32 may come from a coarser element type, whose limits are wider."""
    if dtype == "bfloat16":
        return not np.any(np.ascontiguousarray(logits, np.float32).view(np.uint32) & 0xFFFF)
    with np.errstate(over="ignore"):
        return dtype == "float32" or np.array_equal(logits.astype(dtype).astype(np.float32), logits, equal_nan=True)


def _sketches(arrays: Mapping[str, Array], name: str) -> list[Array]:
    """Sketches of several tensors.

    Raises:
        ValueError: they are none.
    """
    rows, norm, lengths = (arrays[f"{name}.{part}"] for part in ("sketch", "norm", "lengths"))
    if (rows.dtype.kind, norm.dtype.kind, lengths.dtype.kind) != ("f", "f", "i") or rows.shape[1:] != (PROJECTIONS,):
        raise ValueError(f"{name} is no sketch")
    if np.any(lengths < 0) or {rows.shape[:1], norm.shape} != {(int(lengths.sum()),)}:
        raise ValueError(f"{name} has other rows than it says")
    return np.split(np.c_[norm, rows], np.cumsum(lengths)[:-1]) if len(lengths) else []
