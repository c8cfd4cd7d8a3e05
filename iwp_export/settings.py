"""What each verb can be told: a dataclass, from which functions of `iwp_export` and flags of the command line are made.

A default stands here and nowhere else: functions take theirs from the class (`ValidationSettings.score`), and a flag
that is not given leaves the field alone. The text of a field explains it, for a flag and for a function's argument.
Imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from iwp_export.errors import SettingsError
from iwp_export.pruning.settings import check_keep

Device = Literal["cpu", "cuda"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
"""Element type of weights and activations; for `auto` see each verb."""
CheckpointDtype = Literal["float32", "float16", "bfloat16"]
Faster = Literal["end-to-end", "prefill"]
Objective = Literal["kl", "agreement", "accuracy"]
ScoreName = Literal["exact", "normalised", "relaxed"]
FlavourName = Literal["rtx", "tensorrt"]

GREATEST = 2**31 - 1
"""The largest whole number that a file of ours holds."""
LEAST_PAIRS, RUNS_FOR_P99 = 14, 100
"""Of a bench: for an interval, and for a 99th percentile that is not just the slowest run."""
REPEATS = 3, 10
"""Processes of a bench that is repeated."""
CHECKPOINT, NOTHING = "checkpoint", "none"
"""References of a validation that are no files."""
MAX_DROP = "share of the unpruned score that may go (of the answers, where the data have none to score): 1% or 0.01"
PROVIDER = "execution provider of a bundle: cpu, cuda, ..."
STRICT = "warnings fail, such as clocks that are not locked"
GATES = "gates, of the pruned runs; that tokens are dropped is always one"


def option(default: Any, group: str, unit: str, text: str, **more: Any) -> Any:
    """A field with a flag.

    Args:
        default: if it is not given.
        group: title of the flags it stands with.
        unit: name of its value; `SHARE` may be given as 1% or 0.01.
        text: what the flag is for.
        **more: `shown`: the default in words. `one_of`: a name that flags share of which one alone may be given.
            `const`: the value of the flag alone. `commas`: a list is one word with commas.
    """
    return field(default=default, metadata={"group": group, "unit": unit, "text": text, **more})


def kinds(settings: type) -> Mapping[str, Any]:
    """The type of each field, without None."""
    found = {}
    for name, hint in get_type_hints(settings).items():
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        found[name] = next(member for member in members if member is not NoneType)
    return found


@dataclass(frozen=True)
class Settings:
    """Base of all. A path may be given as `str` or `Path`, and a list for a tuple.

    Raises:
        SettingsError: a word is none of a field's choices, or a keep ratio is out of range.
    """

    def __post_init__(self) -> None:
        for name, kind in kinds(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, str) and kind is Path:
                object.__setattr__(self, name, Path(value))
            elif isinstance(value, PurePath) and kind is str:
                object.__setattr__(self, name, str(value))
            elif isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            elif value is not None and get_origin(kind) is Literal and value not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise SettingsError(f"{name} must be one of {choices}, got {value!r}", options=(name,))
            if name == "keep" and value is not None:
                for keep in value if isinstance(value, Sequence) else (value,):
                    check_keep(keep)

    def require(self, **least: int) -> None:
        """Refuse fields that are neither None nor a whole number from a least one to `GREATEST`.

        Raises:
            SettingsError: there is one.
        """
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not low <= value <= GREATEST):
                wanted = f"{low} or more" if low < 2 else f"a whole number of {low} or more"
                wanted = f"at most {GREATEST}" if type(value) is int and value > low else wanted
                raise SettingsError(f"{name} must be {wanted}, got {value!r}", options=(name,))


@dataclass(frozen=True)
class ValidationSettings(Settings):
    """What to validate.

    Raises:
        SettingsError: a number is out of range, or options exclude each other.
    """

    against: str = option(
        CHECKPOINT, "parity", "WHAT", "checkpoint, a bundle, an engine, a recording (NAME.npz), or none"
    )
    checkpoint: str | None = option(None, "parity", "MODEL", "where the checkpoint is", shown="where the artefact says")
    record: Path | None = option(
        None, "parity", "NAME.npz", "also write what the checkpoint does, for --against elsewhere"
    )
    hidden_states: bool = option(False, "parity", "", "also compare the states between layers")
    parity_samples: int = option(8, "parity", "N", "questions whose stages are compared")
    parity_tokens: int | None = option(
        None, "parity", "N", "tokens of their answers that are compared", shown="8, or a recording's number"
    )
    data: Path | None = option(None, "accuracy", "FILE", "questions, JSON lines", shown="what ships for the model")
    limit: int | None = option(None, "accuracy", "N", "only the first N questions")
    keep: Sequence[float] = option((), "accuracy", "RATIO", "keep ratios beside 1", shown="the exported one")
    score: ScoreName = option("exact", "accuracy", "", "how answers are scored")
    max_new_tokens: int = option(16, "accuracy", "N", "of an answer")
    max_drop: float | None = option(None, "accuracy", "SHARE", f"gate: {MAX_DROP}")
    min_agreement: float | None = option(
        None, "accuracy", "SHARE", "gate: share of answers that must be the unpruned model's"
    )
    monitors: bool = option(False, "more", "", "also show where the model reads the image (needs the checkpoint)")
    provider: str = option("cpu", "more", "NAME", PROVIDER)
    threads: int | None = option(
        None, "more", "N", "threads of one operator, in torch too", shown="the libraries' choice"
    )
    device: Device = option("cpu", "more", "", "where torch runs the checkpoint")
    checkpoint_dtype: CheckpointDtype = option("float32", "more", "", "element type of the checkpoint in torch")
    strict: bool = option(False, "report", "", STRICT)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(parity_samples=1, parity_tokens=1, limit=1, max_new_tokens=1, threads=1)
        if self.record is not None and self.against != CHECKPOINT:
            text = f"a recording is of the checkpoint, not of {self.against}"
            raise SettingsError(text, options=("record", "against"))


@dataclass(frozen=True)
class BenchSettings(Settings):
    """How to measure an artefact, and what it must hold.

    Raises:
        SettingsError: a number is out of range.
    """

    prompt: str | None = option(None, "what is asked", "TEXT", "the question")
    data: Path | None = option(None, "what is asked", "FILE", "questions, one JSON object a line, asked in turn")
    limit: int = option(7, "what is asked", "N", "the first N questions of the file")
    new_tokens: int = option(32, "what is asked", "N", "length of every answer")
    keep: float | None = option(
        None, "what is asked", "RATIO", "fraction of visual tokens that stays", shown="the exported one"
    )
    pairs: int | None = option(
        None, "how it is measured", "N", "pruned and unpruned runs", shown="as many as take 30 s, 40 to 200"
    )
    warmup: int = option(3, "how it is measured", "N", "runs of each side that do not count")
    repeat: int = option(1, "how it is measured", "N", "fresh processes, 3 to 10, whose ratios then give the intervals")
    provider: str = option("cpu", "how it is measured", "NAME", PROVIDER)
    threads: int | None = option(
        None, "how it is measured", "N", "threads of one operator", shown="the provider's choice"
    )
    fail_if_slower: Faster | None = option(
        None,
        GATES,
        "PHASE",
        "unless pruning is shown to be faster: lower end of the ratio above 1, end-to-end or prefill",
        const="end-to-end",
    )
    max_ttft_ms: float | None = option(None, GATES, "MS", "90th percentile of the time to first token at most")
    max_p99_ms: float | None = option(None, GATES, "MS", "99th percentile end to end at most")
    strict: bool = option(False, "report", "", STRICT)

    def __post_init__(self) -> None:
        super().__post_init__()
        pairs = LEAST_PAIRS if self.max_p99_ms is None else RUNS_FOR_P99
        self.require(new_tokens=1, pairs=pairs, warmup=1, repeat=1, limit=1)
        low, high = REPEATS
        if self.repeat != 1 and not low <= self.repeat <= high:
            raise SettingsError(f"repeat must be 1 or {low} to {high}, got {self.repeat}", options=("repeat",))
        for name in ("max_ttft_ms", "max_p99_ms"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SettingsError(f"{name} must be a time above 0, got {value!r}", options=(name,))


@dataclass(frozen=True)
class CalibrationSettings(Settings):
    """What a calibration searches, on which samples, and where.

    Raises:
        SettingsError: a number is out of range.
    """

    data: Path | None = option(
        None, "data", "PATH", "folder of images, or JSON lines with image, prompt and maybe answer"
    )
    prompts: Path | None = option(None, "data", "FILE", "for a folder of images: a prompt a line")
    samples: int = option(96, "data", "N", "samples at most")
    seed: int = option(0, "data", "N", "of the samples' draw and order")
    max_new_tokens: int = option(16, "data", "N", "of an answer")
    keep: Sequence[float] | None = option(None, "search", "RATIO", "keep ratios", shown="0.3", one_of="budget")
    speedup: float | None = option(None, "search", "X", "of the prefill, by operations", one_of="budget")
    max_drop: float | None = option(None, "search", "SHARE", MAX_DROP, one_of="budget")
    objective: Objective = option("kl", "search", "", "what settings are ranked by")
    layers: Sequence[int] = option((), "search", "N", "layers to try", shown="up to the middle")
    device: Device = option("cpu", "where it runs", "", "where torch runs the model")
    dtype: Dtype = option(
        "auto",
        "where it runs",
        "",
        "auto: the checkpoint's own on a GPU; on a CPU float32 if memory allows, else bfloat16",
    )
    threads: int | None = option(None, "where it runs", "N", "CPU threads", shown="torch's choice")
    revision: str | None = option(None, "where it runs", "REV", "branch, tag or commit of a Hub id")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(samples=1, max_new_tokens=1, seed=0, threads=1)


@dataclass(frozen=True)
class BuildSettings(Settings):
    """What a build may choose; None is the default that the bundle or the machine gives.

    Raises:
        SettingsError: there is no architecture in `sm`.
    """

    target: FlavourName | None = option(
        None, "engine", "", "rtx: TensorRT-RTX; tensorrt: this machine's TensorRT and GPU"
    )
    sm: Sequence[str] | None = option(
        None, "engine", "LIST", "with rtx: architectures to compile for", shown="86,89,120", commas=True
    )
    max_context: int | None = option(
        None, "engine", "N", "tokens of a conversation, before pruning", shown="4096, or the model's positions"
    )
    max_prompt: int | None = option(
        None, "engine", "N", "tokens of one call, text and visual", shown="its images and 512"
    )
    max_images: int = option(1, "engine", "N", "images of one call")
    profiles: int | None = option(
        None, "engine", "N", "1: weights once; 2: kernels of their own for decode steps", shown="1 with rtx, else 2"
    )
    keep: float | None = option(
        None, "engine", "RATIO", "keep ratio that kernels are chosen for; a request may choose another",
        shown="the bundle's",
    )  # fmt: skip
    timing_cache: Path | None = option(None, "engine", "FILE", "with tensorrt: kernels measured earlier")
    plugin: Path | None = option(None, "engine", "LIBRARY", "the C++ plugin, in place of the one in Python")
    skip_memory_check: bool = option(False, "engine", "", "build even if memory seems too small")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sm is not None and not self.sm:
            raise SettingsError("name at least one architecture, such as 89", options=("sm",))
