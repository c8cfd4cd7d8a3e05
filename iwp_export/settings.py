"""What each verb can be told: a dataclass, from which functions of `iwp_export` and flags of the command line are made.

A default stands here and nowhere else: functions take theirs from the class (`ValidationSettings.score`), and a flag
that is not given leaves the field alone. The metadata of a field is what its flag shows. Imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePath
from typing import Any, Literal, get_args

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

LEAST_PAIRS, RUNS_FOR_P99 = 14, 100
"""Of a bench: for an interval, and for a 99th percentile that is not just the slowest run."""
REPEATS = 3, 10
"""Processes of a bench that is repeated."""
CHECKPOINT, NOTHING = "checkpoint", "none"
"""References of a validation that are no files."""


def option(default: Any, text: str, unit: str = "", **more: Any) -> Any:
    """A field with a flag.

    Args:
        default: if it is not given.
        text: what the flag is for.
        unit: name of its value.
        **more: `group`: title of the flags it stands with. `shown`: the default in words. `share`: 1% is 0.01.
            `one_of`: a name that flags share of which one alone may be given. `const`: the value of the flag alone.
            `commas`: a list is one word with commas.
    """
    return field(default=default, metadata={"text": text, "unit": unit, **more})


def check_numbers(settings: object, least: dict[str, int]) -> None:
    """Refuse fields that are neither None nor a whole number from a least one on.

    Raises:
        SettingsError: there is one.
    """
    for name, low in least.items():
        value = getattr(settings, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
            wanted = f"{low} or more" if low < 2 else f"a whole number of {low} or more"
            raise SettingsError(f"{name} must be {wanted}, got {value!r}", options=(name,))


@dataclass(frozen=True)
class Settings:
    """Base of all: a path may be given as `str` or `Path`, a list for a tuple."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value, kind = getattr(self, each.name), str(each.type)
            if isinstance(value, str) and "Path" in kind:
                object.__setattr__(self, each.name, Path(value))
            elif isinstance(value, PurePath) and kind.startswith("str"):
                object.__setattr__(self, each.name, str(value))
            elif isinstance(value, list):
                object.__setattr__(self, each.name, tuple(value))


@dataclass(frozen=True)
class ValidationSettings(Settings):
    """What to validate. Python's `iwp_export.validate` explains the fields.

    Raises:
        SettingsError: a number is out of range, or options exclude each other.
    """

    against: str = option(
        CHECKPOINT, "checkpoint, a bundle, an engine, a recording (NAME.npz), or none", "WHAT", group="parity"
    )
    checkpoint: str | None = option(
        None, "where the checkpoint is", "MODEL", group="parity", shown="where the artefact says"
    )
    record: Path | None = option(
        None, "also write what the checkpoint does, for --against elsewhere", "NAME.npz", group="parity"
    )
    hidden_states: bool = option(False, "also compare the states between layers", group="parity")
    parity_samples: int = option(8, "questions whose stages are compared", "N", group="parity")
    parity_tokens: int | None = option(
        None, "tokens of their answers that are compared", "N", group="parity", shown="8, or a recording's number"
    )
    data: Path | None = option(
        None, "questions, JSON lines", "FILE", group="accuracy", shown="what ships for the model"
    )
    limit: int | None = option(None, "only the first N questions", "N", group="accuracy")
    keep: Sequence[float] = option((), "keep ratios beside 1", "RATIO", group="accuracy", shown="the exported one")
    score: ScoreName = option("exact", "how answers are scored", group="accuracy")
    max_new_tokens: int = option(16, "of an answer", "N", group="accuracy")
    max_drop: float | None = option(
        None, "gate: share of the unpruned score that may go: 1% or 0.01", "SHARE", group="accuracy", share=True
    )
    min_agreement: float | None = option(
        None, "gate: share of answers that must be the unpruned model's", "SHARE", group="accuracy", share=True
    )
    monitors: bool = option(False, "also show where the model reads the image (needs the checkpoint)", group="more")
    provider: str = option("cpu", "execution provider of a bundle: cpu, cuda, ...", "NAME", group="more")
    threads: int | None = option(
        None, "threads of one operator, in torch too", "N", group="more", shown="the libraries' choice"
    )
    device: Device = option("cpu", "where torch runs the checkpoint", group="more")
    checkpoint_dtype: CheckpointDtype = option("float32", "element type of the checkpoint in torch", group="more")
    strict: bool = option(False, "warnings fail, such as clocks that are not locked", group="report")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, {"parity_samples": 1, "parity_tokens": 1, "limit": 1, "max_new_tokens": 1, "threads": 1})
        for keep in self.keep:
            check_keep(keep)
        if self.record is not None and self.against != CHECKPOINT:
            raise SettingsError(
                f"a recording is of the checkpoint, not of {self.against}", options=("record", "against")
            )


@dataclass(frozen=True)
class BenchSettings(Settings):
    """How to measure an artefact. Python's `iwp_export.bench` explains the fields."""

    prompt: str | None = option(None, "the question", "TEXT", group="what is asked")
    data: Path | None = option(None, "questions, one JSON object a line, asked in turn", "FILE", group="what is asked")
    limit: int = option(7, "the first N questions of the file", "N", group="what is asked")
    new_tokens: int = option(32, "length of every answer", "N", group="what is asked")
    keep: float | None = option(
        None, "fraction of visual tokens that stays", "RATIO", group="what is asked", shown="the exported one"
    )
    pairs: int | None = option(
        None,
        "pruned and unpruned runs",
        "N",
        group="how it is measured",
        shown="as many as take 30 s, 40 to 200",
    )
    warmup: int = option(3, "runs of each side that do not count", "N", group="how it is measured")
    repeat: int = option(
        1, "fresh processes, 3 to 10, whose ratios then give the intervals", "N", group="how it is measured"
    )
    provider: str = option("cpu", "execution provider of a bundle: cpu, cuda, ...", "NAME", group="how it is measured")
    threads: int | None = option(
        None, "threads of one operator", "N", group="how it is measured", shown="the provider's choice"
    )
    fail_if_slower: Faster | None = option(
        None,
        "unless pruning is shown to be faster: lower end of the ratio above 1, end-to-end or prefill",
        "PHASE",
        const="end-to-end",
        group="gates, of the pruned runs; that tokens are dropped is always one",
    )
    max_ttft_ms: float | None = option(
        None,
        "90th percentile of the time to first token at most",
        "MS",
        group="gates, of the pruned runs; that tokens are dropped is always one",
    )
    max_p99_ms: float | None = option(
        None,
        "99th percentile end to end at most",
        "MS",
        group="gates, of the pruned runs; that tokens are dropped is always one",
    )
    strict: bool = option(False, "warnings fail, such as clocks that are not locked", group="report")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep is not None:
            check_keep(self.keep)
        least = LEAST_PAIRS if self.max_p99_ms is None else RUNS_FOR_P99
        check_numbers(self, {"new_tokens": 1, "pairs": least, "warmup": 1, "repeat": 1, "limit": 1})
        low, high = REPEATS
        if self.repeat != 1 and not low <= self.repeat <= high:
            raise SettingsError(f"repeat must be 1 or {low} to {high}, got {self.repeat}", options=("repeat",))
        for name in ("max_ttft_ms", "max_p99_ms"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SettingsError(f"{name} must be a time above 0, got {value!r}", options=(name,))
        if self.fail_if_slower not in (None, *get_args(Faster)):
            raise SettingsError(
                f"fail_if_slower must be one of {', '.join(get_args(Faster))}, got {self.fail_if_slower!r}",
                options=("fail_if_slower",),
            )


@dataclass(frozen=True)
class CalibrationSettings(Settings):
    """What a calibration searches, on which samples, and where. Python's `iwp_export.calibrate` explains the fields."""

    data: Path | None = option(
        None, "folder of images, or JSON lines with image, prompt and maybe answer", "PATH", group="data"
    )
    prompts: Path | None = option(None, "for a folder of images: a prompt a line", "FILE", group="data")
    samples: int = option(96, "samples at most", "N", group="data")
    seed: int = option(0, "of the samples' draw and order", "N", group="data")
    max_new_tokens: int = option(16, "of an answer", "N", group="data")
    keep: Sequence[float] | None = option(None, "keep ratios", "RATIO", group="search", shown="0.3", one_of="budget")
    speedup: float | None = option(None, "of the prefill, by operations", "X", group="search", one_of="budget")
    max_drop: float | None = option(
        None,
        "share of the unpruned score that may go: 1% or 0.01",
        "SHARE",
        group="search",
        one_of="budget",
        share=True,
    )
    objective: Objective = option("kl", "what settings are ranked by", group="search")
    layers: Sequence[int] = option((), "layers to try", "N", group="search", shown="up to the middle")
    device: Device = option("cpu", "where torch runs the model", group="where it runs")
    dtype: Dtype = option(
        "auto",
        "auto: the checkpoint's own on a GPU; on a CPU float32 if memory allows, else bfloat16",
        group="where it runs",
    )
    threads: int | None = option(None, "CPU threads", "N", group="where it runs", shown="torch's choice")
    revision: str | None = option(None, "branch, tag or commit of a Hub id", "REV", group="where it runs")


@dataclass(frozen=True)
class BuildSettings(Settings):
    """What a build may choose; None is the default that the bundle or the machine gives.

    Attributes:
        target: `rtx` or `tensorrt`.
        sm: architectures for `rtx`, such as `86`.
        max_context, max_prompt, max_images: see `iwp_export.engine.profiles.EngineLimits`.
        profiles: 1 serves prompts and decode steps with the same kernels; 2 chooses kernels for each, and TensorRT-RTX
            then holds the weights twice. None is 1 for `rtx` and 2 for `tensorrt`.
        keep: keep ratio that kernels are chosen for; requests may use another.
        timing_cache: file of measured kernels that makes the next build on the same machine fast; for `tensorrt`.
        plugin: the C++ plugin, taken instead of the one in Python.
        skip_memory_check: build even if the estimate exceeds the free memory.
    """

    target: FlavourName | None = option(None, "rtx: TensorRT-RTX; tensorrt: this machine's TensorRT and GPU")
    sm: Sequence[str] | None = option(
        None, "with rtx: architectures to compile for", "LIST", shown="86,89,120", commas=True
    )
    max_context: int | None = option(
        None, "tokens of a conversation, before pruning", "N", shown="4096, or the model's positions"
    )
    max_prompt: int | None = option(None, "tokens of one call, text and visual", "N", shown="its images and 512")
    max_images: int = option(1, "images of one call", "N")
    profiles: int | None = option(
        None, "1: weights once; 2: kernels of their own for decode steps", "N", shown="1 with rtx, else 2"
    )
    keep: float | None = option(
        None, "keep ratio that kernels are chosen for; a request may choose another", "RATIO", shown="the bundle's"
    )
    timing_cache: Path | None = option(None, "with tensorrt: kernels measured earlier", "FILE")
    plugin: Path | None = option(None, "the C++ plugin, in place of the one in Python", "LIBRARY")
    skip_memory_check: bool = option(False, "build even if memory seems too small")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sm is not None and not self.sm:
            raise SettingsError("name at least one architecture, such as 89", options=("sm",))
