"""Two observations of the same sample, stage by stage, gathered into the figures of a keep ratio."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from iwp_export.backends.session import Floats, Ints
from iwp_export.parity.figures import Gap, KeepFigures, KeptFigures, StageFigures, TokenFigures
from iwp_export.parity.observation import Choice, Observation
from iwp_export.parity.sketch import Distances, Rows, cosine, distances, first_not_finite
from iwp_export.pruning.reference import normalised, selection_gap_of_pairs
from iwp_export.pruning.settings import PruningSettings

PROMPT, PIXELS, FEATURES, HIDDEN, CACHES, LOGITS = (
    "prompt",
    "pixels",
    "features",
    "hidden states",
    "caches",
    "logits",
)
Place = Callable[[int], str]
"""Where a row is, in words."""


@dataclass
class Tally:
    """One stage so far; fields are those of `StageFigures`."""

    stage: str
    rows: int = 0
    absolute: float = 0.0
    relative: float = -1.0
    cosine: float = 1.0
    cosine_where: str = ""
    kl_where: str = ""
    kl: float = 0.0
    where: str = ""
    flaw: str = ""

    def add(self, ours: Rows, theirs: Rows, place: Place) -> None:
        """Compare rows; what cannot be compared is a flaw."""
        if len(ours) != len(theirs):
            self.fail(f"{place(0)}: {len(ours)} rows, the reference has {len(theirs)}")
            return
        if self._finite(first_not_finite(ours), first_not_finite(theirs), place):
            self.take(distances(ours, theirs), place)

    def add_whole(self, ours: Ints, theirs: Ints, place: str) -> None:
        """Compare whole numbers, which must be equal."""
        self.rows += 1
        self.relative = max(self.relative, 0.0)
        if not np.array_equal(ours, theirs):
            self.fail(f"{place}: {_first_difference(ours, theirs)}")

    def add_logits(self, ours: Floats, theirs: Floats, place: Place) -> None:
        """Compare logits [T, V]."""
        if ours.shape != theirs.shape:
            self.fail(f"{place(0)}: {list(ours.shape)} logits, the reference has {list(theirs.shape)}")
            return
        wrong = [_first(~np.isfinite(each).all(axis=1)) for each in (ours, theirs)]
        if self._finite(wrong[0], wrong[1], place):
            a, b = ours.astype(np.float64), theirs.astype(np.float64)
            norms = [np.sqrt(np.square(each).sum(1)) for each in (a, b)]
            apart = np.sqrt(np.square(a - b).sum(1))
            relative = apart / np.maximum(norms[1], np.finfo(np.float64).tiny)
            self.take(Distances(np.abs(a - b).max(1), relative, cosine(norms[0], norms[1], apart)), place)
            found = divergences(a, b)
            if found.max() >= self.kl:
                self.kl, self.kl_where = float(found.max()), place(int(np.argmax(found)))

    def take(self, found: Distances, place: Place) -> None:
        """Distances of the rows of one tensor."""
        if not len(found.relative):
            return
        self.rows += len(found.relative)
        worst = int(np.argmax(found.relative))
        if not np.isfinite(found.relative[worst]):
            self.fail(f"{place(worst)}: the reference is nothing but zeros")
        elif found.relative[worst] > self.relative:
            self.relative, self.where = float(found.relative[worst]), place(worst)
        self.absolute = max(self.absolute, float(found.absolute.max()))
        if found.cosine < self.cosine:
            self.cosine, self.cosine_where = found.cosine, place(0).rpartition(", ")[0]

    def fail(self, flaw: str) -> None:
        """Note the first flaw."""
        self.flaw = self.flaw or flaw

    def figures(self) -> StageFigures:
        """The result."""
        known = self.relative >= 0
        return StageFigures(
            stage=self.stage,
            rows=self.rows,
            absolute=self.absolute if known else None,
            relative=self.relative if known else None,
            cosine=self.cosine if known else None,
            kl=self.kl if known and self.stage == LOGITS else None,
            where=self.where,
            cosine_where=self.cosine_where,
            kl_where=self.kl_where,
            flaw=self.flaw,
        )

    def _finite(self, ours: int | None, theirs: int | None, place: Place) -> bool:
        if ours is not None:
            self.fail(f"{place(ours)}: a number is not finite")
        elif theirs is not None:
            self.fail(f"{place(theirs)}: a number of the reference is not finite")
        return ours is None and theirs is None


@dataclass
class Comparison:
    """Samples compared so far at one keep ratio."""

    keep: float
    settings: PruningSettings
    tallies: dict[str, Tally] = field(default_factory=dict)
    choices: int = 0
    differing: int = 0
    followed: int = 0
    agreement: float = 1.0
    gaps: list[Gap] = field(default_factory=list)
    kept_flaw: str = ""
    tokens: int = 0
    tokens_differing: int = 0
    ties: int = 0
    token_where: str = ""

    def tally(self, stage: str) -> Tally:
        """Of a stage."""
        return self.tallies.setdefault(stage, Tally(stage))

    def add_inputs(self, sample: str, ours: Observation, theirs: Observation) -> None:
        """Pixels and features, which are the same at every keep ratio."""
        if len(ours.features) != len(theirs.features):
            self.tally(FEATURES).fail(f"{sample}: {len(ours.features)} images, not {len(theirs.features)}")
        for image, (mine, other) in enumerate(zip(ours.inputs, theirs.inputs, strict=False), 1):
            for name, expected in other.items():
                where, found = f"{sample}, image {image}, {name}", mine.get(name)
                if isinstance(expected, Rows) and isinstance(found, Rows):
                    self.tally(PIXELS).add(found, expected, _placed(f"{where}, row "))
                elif isinstance(expected, np.ndarray) and isinstance(found, np.ndarray):
                    self.tally(PIXELS).add_whole(found, expected, where)
                else:
                    self.tally(PIXELS).fail(f"{where}: not there, or of another kind")
        for image, (features, expected) in enumerate(zip(ours.features, theirs.features, strict=False), 1):
            self.tally(FEATURES).add(features, expected, _placed(f"{sample}, image {image}, visual token "))

    def add_choice(
        self, sample: str, ours: Observation, theirs: Observation, look: Callable[[], Choice | None] = lambda: None
    ) -> bool:
        """Which tokens went on.

        Args:
            sample: its name.
            ours, theirs: with the same prompt.
            look: what the artefact chose from, as far as it can tell; asked where the sets differ.

        Returns:
            Whether they are the same.
        """
        self.choices += 1
        where = f"{sample}, keep {self.keep:g}"
        visual = theirs.visual
        kept, expected = ours.kept, theirs.kept
        if len(kept) != len(expected):
            self.differing += 1
            self.kept_flaw = self.kept_flaw or f"{where}: {len(kept)} tokens went on, not {len(expected)}"
            return False
        if np.any(np.diff(kept) <= 0) or len(kept) == 0 or kept[0] < 0 or kept[-1] >= len(visual):
            self.kept_flaw = self.kept_flaw or f"{where}: kept_index does not rise within the prompt"
            return False
        if np.array_equal(kept, expected):
            return True
        self.differing += 1
        mine, right = (each[visual[each]] for each in (kept, expected))
        self.agreement = min(self.agreement, len(np.intersect1d(mine, right)) / max(len(right), 1))
        if len(mine) != len(right):
            self.kept_flaw = self.kept_flaw or f"{where}: tokens of the text were dropped"
        else:
            self._add_gap(where, np.searchsorted(np.flatnonzero(visual), mine), theirs.choice, look())
        return False

    def _add_gap(self, where: str, chosen: npt.NDArray[np.intp], theirs: Choice | None, ours: Choice | None) -> None:
        gaps = [None if each is None else self._gap_of(chosen, each) for each in (theirs, ours)]
        scores = None
        if theirs is not None and ours is not None:
            scores = float(np.abs(normalised(ours.importance) - normalised(theirs.importance)).max())
        if not all(number is None or np.isfinite(number) for number in (*gaps, scores)):
            self.kept_flaw = self.kept_flaw or f"{where}: what tokens were chosen from is not finite"
        else:
            self.gaps.append(Gap(gaps[0], gaps[1], scores, where))

    def _gap_of(self, chosen: npt.NDArray[np.intp], what: Choice) -> float:
        gap = selection_gap_of_pairs(chosen, what.importance, what.alike, **self.settings.selection())
        return 0.0 if gap < 0 else gap  # NaN stays

    def add_rest(self, sample: str, ours: Observation, theirs: Observation, whole: bool = True) -> None:
        """What comes after the choice.

        Args:
            sample: its name.
            ours, theirs: along the same answer.
            whole: whether both kept the same tokens. Else what lies below the pruning layer is compared, which is the
                same whatever was kept.
        """
        below = self.settings.layer
        where = f"{sample}, keep {self.keep:g}"
        layers = len(theirs.cache) if whole else below
        if len(ours.cache) != len(theirs.cache):
            self.tally(CACHES).fail(f"{where}: {len(ours.cache)} layers, the reference has {len(theirs.cache)}")
        for layer, (mine, other) in enumerate(zip(ours.cache[:layers], theirs.cache, strict=False)):
            pruned = layer >= below
            for name, part, expected in zip(("key", "value"), mine, other, strict=True):
                self.tally(CACHES).add(part, expected, _token(f"{where}, layer {layer}, {name}, ", theirs, pruned))
        for layer, (part, expected) in enumerate(zip(ours.hidden, theirs.hidden, strict=False)):
            if whole or layer <= below:
                place = _token(f"{where}, input of layer {layer}, ", theirs, layer > below)
                self.tally(HIDDEN).add(part, expected, place)
        if whole:
            self.tally(LOGITS).add_logits(ours.logits, theirs.logits, _placed(f"{where}, generated token "))
            self._add_tokens(where, ours, theirs)

    def figures(self, stages: Iterable[str]) -> KeepFigures:
        """The result, with these stages, compared or not."""
        kept = KeptFigures(
            self.choices, self.differing, self.agreement, tuple(self.gaps), self.followed, self.kept_flaw
        )
        tokens = TokenFigures(self.tokens, self.tokens_differing, self.ties, self.token_where)
        return KeepFigures(self.keep, tuple(self.tally(stage).figures() for stage in stages), kept, tokens)

    def _add_tokens(self, where: str, ours: Observation, theirs: Observation) -> None:
        for place, (token, expected) in enumerate(zip(ours.tokens, theirs.tokens, strict=False)):
            self.tokens += 1
            if token == expected:
                continue
            self.tokens_differing += 1
            logits = theirs.logits[place]
            apart = float(np.abs(ours.logits[place] - logits).max())
            if abs(float(logits[expected] - logits[token])) <= 2 * apart:
                self.ties += 1
            else:
                self.token_where = self.token_where or f"{where}, generated token {place}: {token}, not {expected}"


def divergences(ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """KL of the distributions of logits [T, V], of ours from theirs, nats [T]."""
    logs = []
    for logits in (ours, theirs):
        shifted = logits - logits.max(1, keepdims=True)
        logs.append(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
    found: npt.NDArray[np.float64] = (np.exp(logs[1]) * (logs[1] - logs[0])).sum(1)
    return np.maximum(found, 0)


def _placed(prefix: str) -> Place:
    return lambda row: f"{prefix}{row}"


def _token(prefix: str, theirs: Observation, pruned: bool) -> Place:
    """A row's token, counted in the unpruned prompt; those of the answer from 0."""
    rows = theirs.kept if pruned else np.arange(len(theirs.token_ids))

    def place(row: int) -> str:
        return f"{prefix}token {rows[row]}" if row < len(rows) else f"{prefix}generated token {row - len(rows)}"

    return place


def _first(wrong: Any) -> int | None:
    return int(np.argmax(wrong)) if wrong.any() else None


def _first_difference(ours: Ints, theirs: Ints) -> str:
    if ours.shape != theirs.shape:
        return f"shape {list(ours.shape)}, the reference has {list(theirs.shape)}"
    place = int(np.argmax(ours.reshape(-1) != theirs.reshape(-1)))
    return f"{ours.reshape(-1)[place]} at {place}, the reference has {theirs.reshape(-1)[place]}"
