"""The comparison of an artefact with a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from iwp_export.bundle.schema import Flaw
from iwp_export.bundle.store import Bundle
from iwp_export.engine.files import SUFFIX, read_engine
from iwp_export.errors import BundleError, DataError, RecordingError, RequestError
from iwp_export.parity import compare
from iwp_export.parity.compare import Comparison
from iwp_export.parity.figures import Integrity, Parity
from iwp_export.parity.identity import Identity
from iwp_export.parity.limits import limits_of
from iwp_export.parity.observation import Choice, Observation, observe
from iwp_export.parity.reference import ParityReference
from iwp_export.parity.sample import Sample, read_prompt, samples_of
from iwp_export.progress import progress
from iwp_export.pruning.settings import check_keep
from iwp_export.questions import Question
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.processor import Prompt

KEEPS = (1.0, 0.3, 0.111)
"""Ratios to compare at, unless the caller says otherwise: unpruned, the usual one, and nearly nothing."""
NEW_TOKENS = 8
"""Of each answer: enough decode steps for what goes wrong with every step to show."""
ONCE = (compare.PROMPT, compare.PIXELS, compare.FEATURES)
ALWAYS = (compare.CACHES, compare.LOGITS)


def check_parity(
    pipeline: Pipeline,
    reference: ParityReference,
    questions: Sequence[Question] | None = None,
    keeps: Sequence[float] | None = None,
    max_new_tokens: int | None = None,
    hidden_states: bool = False,
    path: Path | str | None = None,
) -> Parity:
    """Compare an artefact with a reference, stage by stage, along the reference's greedy answers.

    Args:
        pipeline: the artefact.
        reference: what is right; see `open_reference`.
        questions: what is asked; None takes the samples of a recording.
        keeps: fractions of the visual tokens that stay; None takes a recording's, else `KEEPS`.
        max_new_tokens: tokens of each answer; None takes a recording's, else `NEW_TOKENS`.
        hidden_states: also compare the states between layers, where both sides can show them.
        path: the artefact's, whose files are then all compared with their hashes. Where they are
            damaged no pipeline opens: ask `check_integrity` first.

    Raises:
        DataError: there is nothing to ask.
        SettingsError: a keep ratio out of range.
        RequestError: the reference cannot be asked a question.
        RecordingError: the recording is of another model, or lacks what is asked for.
        BackendError: a backend failed.
    """
    identity = Identity.of(pipeline.manifest)
    if reference.samples is not None and identity.of_another_model(reference.identity):
        raise RecordingError(f"the {reference.name} is of {reference.identity}, the artefact of {identity}")
    samples = reference.samples if questions is None else samples_of(questions)
    if not samples:
        raise DataError("there is nothing to compare: give questions, or a recording, which has its own")
    max_new_tokens = max_new_tokens or reference.new_tokens or NEW_TOKENS
    keeps = tuple(reference.keeps or KEEPS) if keeps is None else tuple(keeps)
    if not keeps:
        raise DataError("there is nothing to compare: give a keep ratio", options=("keep",))
    for keep in keeps:
        check_keep(keep)
    notes, inside = [], hidden_states
    for who, reason in (("the artefact", pipeline.session.no_look), ("the reference", reference.no_hidden_states)):
        if hidden_states and reason:
            notes.append(f"Hidden states were not compared: {who} has none to show ({reason}).")
            inside = False
    comparisons = [Comparison(keep, pipeline.manifest.pruning) for keep in keeps]
    with progress(f"Comparing with {reference.name}", len(samples) * len(keeps)) as advance:
        for sample in samples:
            asked = _Asked(pipeline, reference, sample, max_new_tokens, inside)
            for number, comparison in enumerate(comparisons):
                asked.compare(comparison, first=number == 0)
                advance(1)
    stages = (*ALWAYS, *((compare.HIDDEN,) if inside else ()))
    return Parity(
        reference=f"{reference.name}: {reference.identity}",
        dtype=limits_of(pipeline.manifest.decoder.dtype, reference.dtype)[0],
        samples=len(samples),
        new_tokens=max_new_tokens,
        differences=tuple(identity.differences(reference.identity)),
        integrity=None if path is None else check_integrity(path),
        keeps=tuple(
            comparison.figures((*ONCE, *stages) if number == 0 else stages)
            for number, comparison in enumerate(comparisons)
        ),
        notes=tuple(notes),
    )


def check_integrity(path: Path | str) -> Integrity:
    """Read every file of an artefact and compare it with the hash that its description holds.

    Raises:
        BundleError: there is no artefact, or its description cannot be read.
    """
    engine = Path(path).suffix == SUFFIX
    try:
        files = read_engine(path, "full")[1].files if engine else Bundle.open(path, "full").manifest.files
    except BundleError as error:
        if not isinstance(error.__cause__, Flaw):
            raise
        return Integrity(0, 0, " ".join(str(error).split()))
    return Integrity(len(files), sum(entry.bytes for entry in files.values()), "")


class _Asked:
    """One sample, asked of both sides."""

    def __init__(
        self, pipeline: Pipeline, reference: ParityReference, sample: Sample, new_tokens: int, inside: bool
    ) -> None:
        self._pipeline, self._reference, self._sample = pipeline, reference, sample
        self._new_tokens, self._inside = new_tokens, inside
        self._prompt: Prompt | None = None
        self._refusal = ""
        try:
            self._prompt = read_prompt(pipeline, sample)
        except RequestError as error:
            self._refusal = f"{sample.name}: the artefact cannot be asked: {error}"

    def compare(self, comparison: Comparison, first: bool) -> None:
        """Ask at the comparison's keep ratio; `first` is the ratio at which what does not depend on it is compared."""
        name, keep = self._sample.name, comparison.keep
        theirs = self._reference.observe(self._sample, keep, self._new_tokens, self._inside)
        if first and self._prompt is not None:
            comparison.tally(compare.PROMPT).add_whole(self._prompt.token_ids, theirs.token_ids, name)
        try:
            if self._prompt is None:
                raise RequestError(self._refusal)
            ours = self._observe(Prompt(theirs.token_ids, self._prompt.pictures), keep, theirs)
        except RequestError as error:
            comparison.tally(compare.PROMPT if first else compare.CACHES).fail(f"{name}: {error}")
            return
        if first:
            comparison.add_inputs(name, ours, theirs)
        same = comparison.add_choice(name, ours, theirs, lambda: self._choice(theirs, keep))
        if not same and len(ours.kept) == len(theirs.kept):
            followed = self._reference.observe_choosing(
                self._sample, keep, theirs.forced.tolist(), ours.kept, self._inside
            )
            if followed is not None:
                comparison.followed += 1
                theirs, same = followed, True
        comparison.add_rest(name, ours, theirs, same)

    def _choice(self, theirs: Observation, keep: float) -> Choice | None:
        """What the artefact chose from, if it can tell."""
        if self._prompt is None or self._pipeline.session.no_look:
            return None
        prompt = Prompt(theirs.token_ids, self._prompt.pictures)
        return observe(self._pipeline, prompt, keep, 1, theirs.forced[:1].tolist(), "choice").choice

    def _observe(self, prompt: Prompt, keep: float, theirs: Observation) -> Observation:
        """The artefact along the reference's answer; the states between layers come from a run of their own."""
        forced = theirs.forced.tolist()
        ours = observe(self._pipeline, prompt, keep, len(forced), forced)
        if not self._inside:
            return ours
        return replace(ours, hidden=observe(self._pipeline, prompt, keep, len(forced), forced, "layers").hidden)
