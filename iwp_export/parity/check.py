"""The comparison of an artefact with a reference, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iwp_export.backends.session import Array, Floats, Ints
from iwp_export.bundle.recipe import unlike_source
from iwp_export.bundle.schema import Flaw
from iwp_export.bundle.store import Bundle
from iwp_export.engine.files import SUFFIX, read_engine
from iwp_export.errors import BackendError, BundleError, DataError, RecordingError, RequestError, in_one_line
from iwp_export.parity.figures import (
    LIMITS,
    Gap,
    Identity,
    Integrity,
    KeepFigures,
    KeptFigures,
    Parity,
    Stage,
    StageFigures,
    TokenFigures,
)
from iwp_export.parity.observation import (
    ArtefactReference,
    Choice,
    Look,
    Observation,
    ParityReference,
    Sample,
    observe,
    picture_inputs,
    picture_name,
    vocabulary_of,
)
from iwp_export.parity.probes import PROBE, with_probes
from iwp_export.parity.recording import RECORDING, read_recording
from iwp_export.progress import progress
from iwp_export.pruning.reference import normalised, selection_gap_of_pairs
from iwp_export.pruning.settings import PruningSettings
from iwp_export.questions import Question
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.processor import Prompt
from iwp_export.settings import CHECKPOINT, CheckpointDtype, Device

KEEPS = (1.0, 0.3, 0.111)
"""Ratios to compare at, unless the caller says otherwise: unpruned, the usual one, and nearly nothing."""
NEW_TOKENS = 8
"""Of each answer: enough decode steps for what goes wrong with every step to show."""


def open_reference(
    pipeline: Pipeline,
    against: str = CHECKPOINT,
    *,
    checkpoint: str | None = None,
    device: Device = "cpu",
    dtype: CheckpointDtype = "float32",
    threads: int | None = None,
) -> ParityReference:
    """Open what an artefact is to be compared with.

    Args:
        pipeline: the artefact.
        against: `checkpoint`; a bundle's folder; an engine, NAME.plan; or a recording, NAME.npz.
        checkpoint: where the checkpoint is; None is where the artefact was exported from.
        device, dtype: where and in which element type torch runs it; see `CheckpointReference`.
        threads: of a bundle, see `Pipeline.open`, and of torch on the CPU.

    Raises:
        CheckpointError, BundleError, BackendError, RecordingError: it cannot be opened, or torch is missing.
        DataError: `against` is none of these.
    """
    path = Path(against)
    if against == CHECKPOINT:
        try:
            from iwp_export.exporter.live import limit_threads
            from iwp_export.parity.checkpoint import CheckpointReference
        except ImportError as error:
            if str(error.name).startswith("iwp_export"):
                raise  # a bug
            raise BackendError(
                f"comparing with a checkpoint needs torch ({error}); install with: pip install 'iwp-export[export]', "
                "or record the checkpoint where torch is and compare with the recording",
                options=("record", "against"),
            ) from error
        if threads is not None:
            limit_threads(threads)
        return CheckpointReference(pipeline.manifest, checkpoint, device, dtype)
    if path.suffix == RECORDING:
        return read_recording(path)
    if path.suffix == SUFFIX:
        return ArtefactReference(Pipeline.open(path), path.name)
    if path.is_dir():
        return ArtefactReference(Pipeline.open(path, threads=threads), path.absolute().name)
    raise DataError(
        f"nothing to compare with at {against}: give `{CHECKPOINT}`, a bundle's folder, an engine (NAME{SUFFIX}) or a "
        f"recording (NAME{RECORDING})",
        options=("against",),
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
        return Integrity(0, 0, in_one_line(error))
    return Integrity(len(files), sum(entry.bytes for entry in files.values()), "")


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
        questions, keeps: what is asked, and fractions of the visual tokens that stay, `KEEPS` if None; a recording has
            its own.
        max_new_tokens: tokens of each answer; None takes a recording's, else `NEW_TOKENS`.
        hidden_states: also compare the states between layers, where both sides can show them.
        path: the artefact's, whose files are then all compared with their hashes. Where they are
            damaged no pipeline opens: ask `check_integrity` first.

    Raises:
        DataError: there is nothing to ask.
        RequestError: the reference cannot be asked a question, or a keep ratio is out of range.
        RecordingError: the recording is of another model, or lacks what is asked for.
        BackendError: a backend failed.
    """
    identity = Identity.of(pipeline.manifest)
    if reference.samples is not None and identity.other_model(reference.identity):
        raise RecordingError(f"the {reference.name} is of {reference.identity}, the artefact of {identity}")
    keeps, new_tokens = reference.keeps or keeps or KEEPS, max_new_tokens or reference.new_tokens or NEW_TOKENS
    samples: Sequence[Sample] = reference.samples or ()
    missed: tuple[str, ...] = ()
    if reference.samples is None:
        samples, missed = with_probes(questions or (), reference, new_tokens)
    if not samples:
        raise DataError("there is nothing to compare: give questions, or a recording, which has its own")
    unlike = unlike_source(pipeline.manifest.pruning, pipeline.manifest.pruning_source)
    bounded = pipeline.session.call_limits is not None or isinstance(reference, ArtefactReference)
    reasons = {"the artefact": pipeline.session.no_look, "the reference": reference.no_hidden_states}
    notes = tuple(
        f"Hidden states were not compared: {who} has none to show ({reason})."
        for who, reason in reasons.items()
        if hidden_states and reason
    )
    comparisons: list[Comparison] = []
    added = sum(sample.name.startswith(PROBE) for sample in samples)
    runs = [(keep, sample) for keep in keeps for sample in samples if sample.is_run(keep, keeps)]
    with progress(f"Comparing with {reference.name}", len(runs)) as advance:
        for keep in keeps:
            comparison = Comparison(keep, pipeline.manifest.pruning, not comparisons, hidden_states and not notes)
            if not comparisons:
                comparison.see(pipeline, reference, [sample for sample in samples if sample.kind == "seen"])
            comparisons.append(comparison)
            for sample in (sample for ratio, sample in runs if ratio == keep):
                comparison.ask(pipeline, reference, sample, new_tokens)
                advance(1)
    return Parity(
        reference=f"{reference.name}: {reference.identity}",
        dtype=max(pipeline.manifest.decoder.dtype, reference.dtype, key=list(LIMITS).index),
        samples=len(samples) - added,
        probes=added,
        layers=pipeline.manifest.decoder.layers,
        new_tokens=new_tokens,
        differences=(*identity.differences(reference.identity, bounded), *unlike),
        integrity=None if path is None else check_integrity(path),
        keeps=tuple(comparison.figures for comparison in comparisons),
        notes=(*notes, *missed, *comparisons[0].notes),
    )


class Comparison:
    """Runs of two sides at one keep ratio, gathered in figures.

    Args:
        keep: the ratio.
        settings: the artefact's.
        first: whether to compare what does not depend on the ratio: prompt, pixels and features.
        inside: whether to compare the states between layers.
    """

    def __init__(self, keep: float, settings: PruningSettings, first: bool = True, inside: bool = False) -> None:
        once: tuple[Stage, ...] = ("prompt", "pixels", "features") if first else ()
        always: tuple[Stage, ...] = ("caches", "logits", "text")
        always = (*always, "hidden states") if inside else always
        self._settings, self._inside = settings, inside
        self.figures = KeepFigures(keep, tuple(map(StageFigures, (*once, *always))), KeptFigures(), TokenFigures())
        self.stages = {stage.stage: stage for stage in self.figures.stages}
        self.notes: list[str] = []

    def see(self, pipeline: Pipeline, reference: ParityReference, samples: Sequence[Sample]) -> None:
        """Compare what samples are made to, without a run; and the text of each token."""
        for sample in samples:
            ids, inputs = reference.see(sample)
            prompt = self._prompt(pipeline, sample, ids)
            if prompt is not None:
                mine = picture_inputs(prompt.pictures)
                for name in dict.fromkeys((*inputs, *mine)):
                    place = ", ".join((sample.name, picture_name(name)))
                    compare(self.stages["pixels"], mine.get(name), inputs.get(name), place, ROWS["pixels"].format)
        ours, theirs = vocabulary_of(pipeline.processor.tokenizer), reference.vocabulary()
        differing = np.flatnonzero(ours[: len(theirs)] != theirs[: len(ours)])
        if len(ours) != len(theirs) or len(differing):
            first = differing[0] if len(differing) else min(len(ours), len(theirs))
            _fail(self.stages["text"], f"token {first}: another text than the reference's")

    def _prompt(self, pipeline: Pipeline, sample: Sample, expected: Ints) -> Prompt | None:
        """The artefact's prompt, compared where this comparison has that stage; None if it cannot be asked."""
        try:
            prompt = pipeline.processor.ask_once(sample.prompt, sample.images)
        except RequestError as error:
            _fail(self.figures.stages[0], f"{sample.name}: the artefact cannot be asked: {error}")
            return None
        if "prompt" in self.stages:
            compare(self.stages["prompt"], prompt.token_ids, expected, sample.name)
        return prompt

    def ask(self, pipeline: Pipeline, reference: ParityReference, sample: Sample, new_tokens: int) -> None:
        """Ask both sides one sample, the artefact along the reference's answer."""
        name, keep, inside, two_calls = sample.name, self.figures.keep, self._inside, sample.kind == "two calls"
        theirs = reference.observe(sample, keep, new_tokens, inside)
        forced, seen = theirs.forced.tolist(), self._prompt(pipeline, sample, theirs.token_ids)
        if seen is None:
            return
        prompt = Prompt(theirs.token_ids, seen.pictures)
        limits, most = pipeline.session.call_limits, pipeline.manifest.decoder.max_positions
        fits = limits is None or (limits.allow(theirs.visual) and theirs.visual.size + len(forced) <= most)
        if name.startswith(PROBE) and not fits:
            self.notes.append(f"Not compared, since the engine was not built for as many tokens: {name}.")
            return

        def run(look: Look = "nothing") -> Observation:
            return observe(pipeline, prompt, keep, new_tokens, forced, look, two_calls)

        try:
            ours = run()
            if inside:  # from a run of its own: to look may take another decoder than the one that is compared
                ours = replace(ours, hidden=run("layers").hidden)
        except RequestError as error:
            _fail(self.figures.stages[0], f"{name}: the artefact cannot be asked: {error}")
            return
        if not np.array_equal(ours.kept, theirs.kept) and not pipeline.session.no_look:
            ours = replace(ours, choice=run("choice").choice)
        same = self.add_choice(name, ours, theirs)
        if not same and len(ours.kept) == len(theirs.kept):
            followed = reference.observe_choosing(sample, keep, forced, ours.kept, inside)
            if followed is not None:
                self.figures.kept.followed += 1
                theirs, same = followed, True
        self.add_stages(name, ours, theirs, same)
        text = self.stages["text"]
        text.rows += 1
        if ours.text != theirs.text:
            _fail(text, f"{name}, keep {keep:g}: {ours.text[:40]!r}, not {theirs.text[:40]!r}")

    def add_choice(self, sample: str, ours: Observation, theirs: Observation) -> bool:
        """Whether the same tokens of a prompt went on."""
        figures, where = self.figures.kept, f"{sample}, keep {self.figures.keep:g}"
        kept, expected, visual = ours.kept, theirs.kept, theirs.visual
        figures.choices += 1
        if np.array_equal(kept, expected):
            return True
        figures.differing += 1
        rises = len(kept) and np.all(np.diff(kept) > 0) and kept[0] >= 0 and kept[-1] < len(visual)
        if len(kept) != len(expected):
            _fail(figures, f"{where}: {len(kept)} tokens went on, not {len(expected)}")
        elif not rises:
            _fail(figures, f"{where}: kept_index does not rise within the prompt")
        elif visual[kept].sum() != visual[expected].sum():
            _fail(figures, f"{where}: tokens of the text were dropped")
        else:
            chosen = np.searchsorted(np.flatnonzero(visual), kept[visual[kept]])
            self._add_gap(where, chosen, ours.choice, theirs.choice)
        return False

    def _add_gap(self, where: str, chosen: npt.NDArray[np.intp], ours: Choice | None, theirs: Choice | None) -> None:
        def gap_of(choice: Choice | None) -> float | None:
            if choice is None:
                return None
            selection = self._settings.selection()
            return float(np.maximum(selection_gap_of_pairs(chosen, choice.importance, choice.alike, **selection), 0))

        gap, own_gap, scores = gap_of(theirs), gap_of(ours), None
        if theirs is not None and ours is not None:
            scores = float(np.abs(normalised(ours.importance) - normalised(theirs.importance)).max())
        if all(number is None or math.isfinite(number) for number in (gap, own_gap, scores)):
            self.figures.kept.gaps += (Gap(gap, own_gap, scores, where),)
        else:
            _fail(self.figures.kept, f"{where}: what tokens were chosen from is not finite")

    def add_stages(self, sample: str, ours: Observation, theirs: Observation, same: bool = True) -> None:
        """Tensors and greedy tokens along the same answer; where not the same tokens were kept, only what lies below
        the pruning layer, which is the same whatever was kept."""
        mine, other, below = ours.tensors(), theirs.tensors(), self._settings.layer
        for key in dict.fromkeys((*other, *mine)):
            stage, layer, name = key
            pruned = layer >= below if stage == "caches" else layer > below
            if stage in self.stages and (same or not pruned):
                place = (sample, f"keep {self.figures.keep:g}" if layer >= 0 else "", name)
                names = ROWS[stage].format if stage in ROWS else _token_names(theirs, pruned)
                compare(self.stages[stage], mine.get(key), other.get(key), ", ".join(filter(None, place)), names)
        if same and ours.logits.shape == theirs.logits.shape:
            self._add_tokens(f"{sample}, keep {self.figures.keep:g}", ours, theirs)

    def _add_tokens(self, where: str, ours: Observation, theirs: Observation) -> None:
        figures = self.figures.tokens
        figures.tokens += len(theirs.tokens)
        for place in np.flatnonzero(ours.tokens != theirs.tokens):
            token, expected, logits = ours.tokens[place], theirs.tokens[place], theirs.logits[place]
            figures.differing += 1
            if abs(float(logits[expected] - logits[token])) <= 2 * float(np.abs(ours.logits[place] - logits).max()):
                figures.ties += 1
            else:
                figures.where = figures.where or f"{where}, generated token {place}: {token}, not {expected}"


ROWS = {"pixels": "row {}", "features": "visual token {}", "logits": "generated token {}"}
Names = Callable[[int], str]
"""What to call a row by its number."""


def _token_names(theirs: Observation, pruned: bool) -> Names:
    """Tokens count in the unpruned prompt; those of the answer from 0."""
    prompt = theirs.kept if pruned else np.arange(len(theirs.token_ids))
    return lambda row: f"token {prompt[row]}" if row < len(prompt) else f"generated token {row - len(prompt)}"


def _fail(figures: StageFigures | KeptFigures, flaw: str) -> None:
    """Note a flaw; the first one stays."""
    figures.flaw = figures.flaw or flaw


def compare(stage: StageFigures, ours: Array | None, theirs: Array | None, where: str, names: Names = str) -> None:
    """Compare a tensor: sketches and logits by their rows' distances, whole numbers, which must be equal, one by one.

    What cannot be compared is a flaw.
    """
    if ours is None or theirs is None or (ours.dtype.kind, ours.ndim) != (theirs.dtype.kind, theirs.ndim):
        _fail(stage, f"{where}: not there, or of another kind")
    elif ours.dtype.kind == "f" and len(ours) != len(theirs):
        _fail(stage, f"{where}: {len(ours)} rows, the reference has {len(theirs)}")
    elif ours.shape != theirs.shape:
        _fail(stage, f"{where}: shape {list(ours.shape)}, the reference has {list(theirs.shape)}")
    elif ours.dtype.kind != "f":
        stage.rows += 1
        if stage.relative is None:
            stage.absolute, stage.relative, stage.cosine = 0.0, 0.0, 1.0
        for place in np.flatnonzero(ours != theirs)[:1]:
            _fail(stage, f"{where}: {ours.flat[place]} at {place}, the reference has {theirs.flat[place]}")
    elif bad := [
        (row, whose)
        for array, whose in ((ours, ""), (theirs, " of the reference"))
        for row in np.flatnonzero(~np.isfinite(array).all(1))[:1]
    ]:
        _fail(stage, f"{where}, {names(int(bad[0][0]))}: a number{bad[0][1]} is not finite")
    elif len(ours):
        _add(stage, ours, theirs, where, names)


def _add(stage: StageFigures, ours: Floats, theirs: Floats, where: str, names: Names) -> None:
    """Distances of the rows [n, w] of one tensor, all finite."""
    logits = stage.stage == "logits"
    absolute, relative, cosine = distances(ours, theirs, sketches=not logits)
    stage.rows += len(relative)
    worst = int(np.argmax(relative))
    if not np.isfinite(relative[worst]):
        _fail(stage, f"{where}, {names(worst)}: the reference is nothing but zeros")
    elif stage.relative is None or relative[worst] > stage.relative:
        stage.relative, stage.where = float(relative[worst]), f"{where}, {names(worst)}"
    stage.absolute = max(stage.absolute or 0.0, float(absolute.max()))
    stage.cosine = 1.0 if stage.cosine is None else stage.cosine
    if cosine < stage.cosine:
        stage.cosine, stage.cosine_where = cosine, where
    if logits and (kl := divergences(ours, theirs)).max() >= (stage.kl or 0.0):
        stage.kl, stage.kl_where = float(kl.max()), f"{where}, {names(int(kl.argmax()))}"


def distances(ours: Floats, theirs: Floats, sketches: bool = True) -> tuple[Any, Any, float]:
    """Row by row of [n, w], sketches or whole rows; both have the same shape, and finite numbers.

    Returns:
        Lengths of the differences, float64 [n], of a whole row its largest number; the lengths relative to the
        reference's, of sketches to its median row's where that is longer, since a row of almost nothing is not measured
        by itself; and the cosine of the angle between all rows, taken as one vector, and the reference's: 1 where both
        are nothing.
    """
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    if sketches:
        norms, base, apart = a[:, 0], b[:, 0], np.linalg.norm((a - b)[:, 1:], axis=1)
        # Rows of other lengths are at least so far apart, whatever their projections say.
        absolute = apart = np.maximum(apart, np.abs(norms - base))
    else:
        norms, base, apart = (np.linalg.norm(each, axis=1) for each in (a, b, a - b))
        absolute = np.abs(a - b).max(1)
    squares = [float(np.square(each).sum()) for each in (norms, base, apart)]
    cosine = float(squares[0] == squares[1])
    if squares[0] * squares[1] > 0:
        cosine = (squares[0] + squares[1] - squares[2]) / (2 * math.sqrt(squares[0] * squares[1]))
    base = np.maximum(base, np.median(base)) if sketches and len(base) else base
    relative = np.divide(apart, base, out=np.where(apart > 0, np.inf, 0.0), where=base > 0)
    return absolute, relative, max(-1.0, min(1.0, cosine))


def divergences(ours: Array, theirs: Array) -> npt.NDArray[np.float64]:
    """KL of the distributions of logits [T, V], of ours from theirs, nats [T]."""
    shifted = (logits - logits.max(1, keepdims=True) for logits in (np.float64(ours), np.float64(theirs)))
    mine, right = (logits - np.log(np.exp(logits).sum(1, keepdims=True)) for logits in shifted)
    return np.maximum((np.exp(right) * (right - mine)).sum(1), 0.0)
