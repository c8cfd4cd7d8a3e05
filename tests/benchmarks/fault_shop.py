"""Where faults are made and judged: a right artefact to be copied, its checkpoint, and what validation says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from iwp_export import api
from iwp_export.bundle.schema import to_json
from iwp_export.bundle.store import Bundle
from iwp_export.engine.files import SUFFIX
from iwp_export.errors import IwpError
from iwp_export.models import ALIASES
from iwp_export.parity.check import check_parity, open_reference
from iwp_export.parity.checkpoint import CheckpointReference
from iwp_export.parity.figures import LIMITS, OWN_GAP, Parity
from iwp_export.parity.observation import ParityReference
from iwp_export.parity.recording import record
from iwp_export.parity.verdict import gates
from iwp_export.questions import Question
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.view.figures import Gate
from tests.benchmarks import faulty

MARGINS = ("rows", "cosine", "logits", "kl", "own gap", "scores")
PASSED, FAILED, COULD_NOT_RUN = 0, 1, 2
"""Exit codes of `iwp-export validate`."""


@dataclass
class Workshop:
    """What faults are made of.

    Attributes:
        folder: where copies go.
        bundle: a right artefact, float32.
        questions: with one image each.
        pairs: with two.
        keeps: ratios to compare at; the first is 1.
        new_tokens: of each answer.
    """

    folder: Path
    bundle: Path
    questions: Sequence[Question]
    pairs: Sequence[Question]
    keeps: tuple[float, ...] = (1.0, 0.3)
    new_tokens: int = 4
    references: dict[str, ParityReference] = field(default_factory=dict)

    @cached_property
    def right(self) -> Pipeline:
        """The right artefact, open."""
        return Pipeline.open(self.bundle, threads=1)

    @cached_property
    def half(self) -> Path:
        """A right artefact, float16."""
        path = self.folder / "half.bundle"
        return api.export("tiny-llava", path, Bundle.open(self.bundle).manifest.pruning, dtype="float16", force=True)

    @cached_property
    def recording(self) -> Path:
        """Of the checkpoint."""
        path, keeps = self.folder / "golden.npz", self.keeps
        return record(self.reference(self.right), self.questions, keeps, path, self.new_tokens)

    def reference(self, pipeline: Pipeline) -> ParityReference:
        """The checkpoint, as the artefact's element type and settings ask."""
        manifest = pipeline.manifest
        key = f"{manifest.decoder.dtype} {to_json(manifest.pruning.to_dict())}"
        if key not in self.references:
            self.references[key] = CheckpointReference(manifest, str(ALIASES["tiny-llava"]))
        return self.references[key]

    def copy(self, half: bool = False) -> Path:
        """A bundle to be changed."""
        return faulty.copied(self.half if half else self.bundle, self.folder / "faulty.bundle")

    def judge(
        self,
        artefact: Path | Pipeline,
        against: Path | None = None,
        pairs: bool = False,
    ) -> Outcome:
        """What validation says of an artefact."""
        try:
            path = artefact if isinstance(artefact, Path) else None
            if isinstance(artefact, Path):
                artefact = Pipeline.open(artefact, threads=None if artefact.suffix == SUFFIX else 1)
            reference = self.reference(artefact) if against is None else open_reference(artefact, str(against))
            questions = self.pairs if pairs else self.questions
            asked = None if reference.samples is not None else questions
            parity = check_parity(artefact, reference, asked, self.keeps, self.new_tokens, path=path)
        except IwpError as error:
            return Outcome(COULD_NOT_RUN, (), str(error))
        found = tuple(gates(parity))
        return Outcome(PASSED if all(gate.passed for gate in found) else FAILED, found, "", parity)


@dataclass(frozen=True)
class Outcome:
    """Exit code, gates and, where it could not run, the reason."""

    code: int
    gates: tuple[Gate, ...]
    error: str = ""
    parity: Parity | None = None

    @property
    def failed(self) -> list[str]:
        """Names of the gates that fail."""
        return [gate.name for gate in self.gates if not gate.passed]

    @property
    def margins(self) -> dict[str, float]:
        """The largest of each kind of distance, as a share of its limit."""
        found: dict[str, list[float]] = {name: [0.0] for name in MARGINS}
        if self.parity is None:
            return dict.fromkeys(MARGINS, 0.0)
        limits = LIMITS[self.parity.dtype]
        for keep in self.parity.keeps:
            for stage in keep.stages:
                if stage.stage not in ("features", "caches", "logits") or stage.relative is None:
                    continue
                logits = stage.stage == "logits"
                found["logits" if logits else "rows"].append(
                    stage.relative / (limits.logits if logits else limits.rows)
                )
                found["cosine"].append((1 - (stage.cosine or 0)) / (1 - limits.cosine))
                found["kl"].append((stage.kl or 0) / limits.kl)
            for gap in keep.kept.gaps:
                found["own gap"].append((gap.own_gap or 0) / OWN_GAP)
                found["scores"].append((gap.scores or 0) / limits.scores)
        return {name: max(values) for name, values in found.items()}
