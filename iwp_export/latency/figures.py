"""What a bench measured, as JSON values; seconds and bytes throughout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from iwp_export.bundle.schema import FileSize
from iwp_export.latency.spread import Spread

PHASES = ("preprocess", "vision", "prefill", "decode")
"""One after the other; what is left of the whole time is the host's work between them."""
SPANS = ("first_token", "end_to_end")
"""From the request to its first token, and to its last."""
TITLES = {
    "preprocess": "preprocess",
    "vision": "vision",
    "prefill": "prefill",
    "decode": "decode",
    "rest": "rest",
    "first_token": "time to first token",
    "end_to_end": "end to end",
    "step": "decode step",
}


@dataclass(frozen=True)
class Workload:
    """What was asked.

    Attributes:
        source: where images and prompts are from, in words.
        questions: how many different ones were asked in turn.
        visual_tokens, text_tokens: of the prompts, means over the questions.
        new_tokens: of every answer.
        layer: the one at whose input tokens are dropped.
        keep: share of the visual tokens that stays.
        kept: visual tokens that stay, mean over the questions.
    """

    source: str
    questions: int
    visual_tokens: float
    text_tokens: float
    new_tokens: int
    layer: int
    keep: float
    kept: float


@dataclass(frozen=True)
class Side:
    """The pruned or the unpruned runs, in their order.

    Attributes:
        preprocess: seconds of each run to read, resize and normalise images, and for chat template and tokenizer.
        vision: for the vision tower and projector.
        prefill: for the prompt, the choice of tokens to keep and of the first new one.
        decode: for all further tokens.
        first_token: from the request to its first token.
        end_to_end: from the request to its last token.
        steps: median seconds of each decode step over the runs, first to last.
        phases: percentiles and means of the above by name, `rest` and `step` (all decode steps of all runs) too.
        cache_bytes: key/value cache at the end, mean over the questions.
    """

    preprocess: tuple[float, ...]
    vision: tuple[float, ...]
    prefill: tuple[float, ...]
    decode: tuple[float, ...]
    first_token: tuple[float, ...]
    end_to_end: tuple[float, ...]
    steps: tuple[float, ...]
    phases: Mapping[str, Spread]
    cache_bytes: FileSize

    def check(self) -> None:
        """Raises ValueError where a file's fields contradict each other."""
        lengths = {len(getattr(self, name)) for name in (*PHASES, *SPANS)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError("its phases have not the same number of runs")
        if missing := {*PHASES, "rest", *SPANS} - self.phases.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        if min(self.end_to_end) <= 0 or min(self.phases[name].mean for name in ("prefill", "end_to_end")) <= 0:
            raise ValueError("a time is not above 0")

    def share(self, phase: str) -> float:
        """Part of the mean time end to end that a phase takes."""
        return self.phases[phase].mean / self.phases["end_to_end"].mean


@dataclass(frozen=True)
class Ratio:
    """How many times as long the unpruned runs take; the interval holds a repetition's ratio 98 times of 100.

    Attributes:
        value: the middle of the pairs', see `spread`.
        low, high: ends of the interval.
        promised: by the number of multiply-adds, of the prefill; None for other phases.
    """

    value: float
    low: float
    high: float
    promised: float | None = None


@dataclass(frozen=True)
class Trend:
    """Times that rise or fall over the runs: `change` from first to last, as a share of the median."""

    side: str
    phase: str
    change: float


@dataclass(frozen=True)
class Selection:
    """The pruning op alone, inside of the prefill.

    Attributes:
        seconds: None if it was not measured.
        how: how it was, or why not.
    """

    seconds: Spread | None
    how: str


@dataclass(frozen=True)
class Loop:
    """Requests that start at fixed times.

    Attributes:
        side: `pruned` or `unpruned`.
        hz: requests a second.
        lateness: seconds by which each answer came after the next request was due; 0 if in time.
        delays: seconds by which each request began after its time, since the one before was not done.
    """

    side: str
    hz: float
    lateness: tuple[float, ...]
    delays: tuple[float, ...]

    @property
    def missed(self) -> int:
        """Answers that came too late."""
        return sum(late > 0 for late in self.lateness)


@dataclass(frozen=True)
class Memory:
    """Memory of the first pruned run, then of the first unpruned one.

    Attributes:
        loaded: the process's resident bytes before the first run, weights that were read included; None if the system
            does not tell, like the others.
        peaks: most resident bytes by side and phase, such as `pruned prefill`.
        gpu: bytes in use on the GPU after each side's runs, other programs' included; empty without one.
    """

    loaded: FileSize | None
    peaks: Mapping[str, FileSize]
    gpu: Mapping[str, FileSize]


@dataclass(frozen=True)
class Energy:
    """Joules of an answer by one meter, with what the machine draws when idle.

    Attributes:
        meter, source: what measured, and where it reads. `scope`: what it is of, such as `board` or `GPU`.
        answers: how many were measured together, of each side in turn.
        pruned, unpruned: joules of an answer in each turn.
    """

    meter: str
    scope: str
    source: str
    answers: int
    pruned: tuple[float, ...]
    unpruned: tuple[float, ...]


@dataclass(frozen=True)
class Dropped:
    """Cache lengths of one side, by layer, after a prompt and a decode step.

    Attributes:
        side: `pruned` or `unpruned`.
        expected: what pruning should leave.
        found: what is there.
        how: where `found` comes from.
        flaw: what is wrong beyond the lengths; empty if nothing is.
    """

    side: str
    expected: tuple[int, ...]
    found: tuple[int, ...]
    how: str
    flaw: str = ""


@dataclass(frozen=True)
class Latency:
    """A bench: pruned and unpruned runs in turn, one request at a time.

    Attributes:
        artefact: its name.
        provider, dtype: what ran it, and its element type.
        workload: what was asked.
        warmup: runs of each side before those that count.
        pruned, unpruned: the runs.
        ratios: unpruned over pruned, by phase.
        trends: what still changed after the warm-up.
        selection: the pruning op alone.
        loops: requests at a fixed rate; empty if none was asked for.
        memory: of the process.
        energy: by meter; empty if there is none.
        dropped: proof that tokens were dropped.
        load: the system's load average of a minute, before and after; empty if it does not tell.
        cpus: the machine's processors, for the load.
        notes: what could not be measured, and what else to know.
    """

    artefact: str
    provider: str
    dtype: str
    workload: Workload
    warmup: int
    pruned: Side
    unpruned: Side
    ratios: Mapping[str, Ratio]
    trends: tuple[Trend, ...]
    selection: Selection
    loops: tuple[Loop, ...]
    memory: Memory
    energy: tuple[Energy, ...]
    dropped: tuple[Dropped, ...]
    load: tuple[float, ...]
    cpus: int
    notes: tuple[str, ...]

    def check(self) -> None:
        """Raises ValueError where a file's fields contradict each other."""
        if missing := {"prefill", *SPANS} - self.ratios.keys():
            raise ValueError(f"it lacks the ratio of {', '.join(sorted(missing))}")

    @property
    def pairs(self) -> int:
        """Pairs of a pruned and an unpruned run."""
        return len(self.pruned.end_to_end)
