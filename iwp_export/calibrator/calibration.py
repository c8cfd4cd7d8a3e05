"""A calibration: from a checkpoint and samples to a recipe."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

from iwp_export.bundle.recipe import (
    CandidateFigures,
    Recipe,
    RecipeData,
    RecipeModel,
    RecipeSearch,
    Role,
    write_recipe,
)
from iwp_export.calibrator.candidates import candidates, default_settings
from iwp_export.calibrator.measurements import Measurements
from iwp_export.calibrator.page import Example, write_page
from iwp_export.calibrator.plan import PAGE_SUFFIX, CalibrationPlan
from iwp_export.calibrator.search import Found, Search, rungs_for, survivors
from iwp_export.calibrator.verdict import BLIND_SAMPLES, Evidence, verdict
from iwp_export.errors import RequestError
from iwp_export.exporter.loading import enough_memory, limit_threads, open_live
from iwp_export.progress import progress
from iwp_export.pruning.cost import PrefillCost
from iwp_export.pruning.settings import PruningSettings
from iwp_export.runtime.drawing import draw_kept
from iwp_export.scorer import Scorer
from iwp_export.version import __version__
from iwp_export.view.figures import standard_error

TOOLS = ("torch", "transformers", "numpy")
EXAMPLES = 3
JOURNAL_SUFFIX = ".progress"
ONE_TOKEN = 1e-9
"""A keep ratio that leaves one visual token, however many a sample's images have."""


class Calibration:
    """A calibration whose model is loaded.

    Args:
        plan: what to do.
        journal: a file that keeps scores for a second start; None keeps none.

    Raises:
        CheckpointError, BackendError: the model cannot be loaded.
        OutputError: the journal cannot be written.
        RequestError: a sample cannot be asked.
    """

    def __init__(self, plan: CalibrationPlan, journal: Path | None = None) -> None:
        self.plan = plan
        session, manifest, processor = open_live(plan.export, plan.dtype, plan.device)
        layers = (*plan.candidate_layers, plan.legal_layers[0])
        self._scorer = Scorer(session, manifest, processor, layers, plan.max_new_tokens)
        self.model = RecipeModel(
            plan.export.model.name, plan.export.model.model_type, plan.export.checkpoint.with_weights().digest()
        )
        visual, text = self._read_samples()[0]
        self.cost = PrefillCost.of(plan.export.checkpoint.config.text_config, visual, text)
        self.candidates = candidates(plan.budget, plan.candidate_layers, self.cost)
        self.default = default_settings(plan.budget, plan.candidate_layers, self.cost)
        self.rungs = rungs_for(len(plan.samples.questions))
        header = {
            "model": self.model.digest,
            "data": plan.samples.digest,
            "seed": plan.seed,
            "samples": len(plan.samples.questions),
            "dtype": plan.dtype,
            "device": plan.device,
            "max_new_tokens": plan.max_new_tokens,
            "version": __version__,
        }
        self.measured = Measurements(self._scorer, plan.samples.questions, plan.keeps, journal, header)

    def _read_samples(self) -> list[tuple[int, int]]:
        """Visual and other tokens of each sample: one that cannot be asked is refused before hours of work.

        Raises:
            RequestError: there is one.
        """
        sizes = []
        with progress("Reading samples", len(self.plan.samples.questions)) as advance:
            for question in self.plan.samples.questions:
                try:
                    prompt = self._scorer.read(question)
                except RequestError as error:
                    raise RequestError(f"the question about {question.images[0].name}: {error}") from error
                visual = sum(picture.num_tokens for picture in prompt.pictures)
                sizes.append((visual, len(prompt.token_ids) - visual))
                advance(1)
        return sizes

    def speedup(self, settings: PruningSettings) -> float:
        """Of a setting's prefill, by operations, for a prompt like the first sample."""
        return self.cost.speedup(settings.layer, settings.num_keep(self.cost.visual))

    def estimate(self) -> float:
        """Seconds that the search takes at most, from a first run of each layer's first candidate."""
        firsts = list({settings.layer: settings for settings in self.candidates}.values())
        prepare, score = self.measured.probe(firsts)
        alive, seconds, met = len(self.candidates), 0.0, 0
        for number, rung in enumerate(self.rungs):
            seconds += (rung - met) * (prepare + alive * score * max(1, len(self.plan.keeps)))
            met, alive = rung, survivors(alive, number)
        return seconds + self.rungs[-1] * (prepare + 5 * score)

    def run(self) -> Recipe:
        """Search, and say what was found."""
        plan, count = self.plan, self.rungs[-1]
        search = Search(self.measured, plan.budget, plan.objective, self.default, self.speedup, self.rungs)
        found = search.run(self.candidates)
        # At the lowest layer: above it the text has seen the image.
        blind = PruningSettings(layer=plan.legal_layers[0], keep=ONE_TOKEN).with_changes(importance="random")
        self.measured.run("One visual token", [blind], min(count, BLIND_SAMPLES))
        evidence = Evidence(self.measured, found, self.default, plan.budget, plan.objective, count, blind)
        versions = {name: importlib.metadata.version(name) for name in TOOLS}
        everything = len(dict.fromkeys([*self.candidates, self.default])) + 2 * len(plan.candidate_layers)
        return Recipe(
            settings=found.chosen,
            model=self.model,
            data=RecipeData(plan.samples.name, plan.samples.digest, count, plan.samples.answers),
            search=RecipeSearch(
                budget=str(plan.budget),
                keeps=plan.keeps or (found.chosen.keep,),
                objective=plan.objective,
                seed=plan.seed,
                rungs=self.rungs,
                runs=self.measured.runs,
                runs_of_all=everything * count * max(1, len(plan.keeps)),
            ),
            verdict=(*verdict(evidence), *_sentence(plan.samples.warning)),
            candidates=self._figures(found),
            tools={"iwp-export": __version__, **versions},
        )

    def examples(self, recipe: Recipe) -> list[Example]:
        """Samples before and after; first those whose answer the paper's settings change and the choice does not."""
        count, chosen = self.rungs[-1], recipe.settings
        gain = self.measured.losses(self.default, count, "agreement") - self.measured.losses(chosen, count, "agreement")
        order = sorted(range(count), key=lambda index: -gain[index])
        return [self._example(index, chosen) for index in order[:EXAMPLES]]

    def _example(self, index: int, chosen: PruningSettings) -> Example:
        prepared = self._scorer.prepare(self.plan.samples.questions[index])
        before, after = (
            (draw_kept(prepared.pictures[0], self._scorer.kept(prepared, each)[0]), self._scorer.answer(prepared, each))
            for each in (self.default, chosen)
        )
        question = prepared.question
        return Example(question.prompt, prepared.answer, before[0], after[0], before[1], after[1], question.answer)

    def _figures(self, found: Found) -> tuple[CandidateFigures, ...]:
        rows = []
        for role, group in (("candidate", found.tried), ("control", found.controls)):
            for settings in group:
                own: Role = "default" if settings == self.default and role == "candidate" else role  # type: ignore[assignment]
                rows.append(self._row(settings, own, settings == found.chosen and role == "candidate"))
        return tuple(rows)

    def _row(self, settings: PruningSettings, role: Role, chosen: bool) -> CandidateFigures:
        count = min(self.measured.met(settings), self.rungs[-1])
        kl = self.measured.losses(settings, count, "kl")
        accuracy = None
        if self.measured.has_answers(settings, count):
            accuracy = round(1 - float(self.measured.losses(settings, count, "accuracy").mean()), 4)
        return CandidateFigures(
            settings=settings,
            role=role,
            samples=count,
            kl=round(float(kl.mean()), 6),
            kl_error=round(standard_error(kl), 6),
            agreement=round(1 - float(self.measured.losses(settings, count, "agreement").mean()), 4),
            accuracy=accuracy,
            prefill_speedup=round(self.speedup(settings), 4),
            chosen=chosen,
        )


def calibrate(
    plan: CalibrationPlan,
    output: Path,
    *,
    force: bool = False,
    threads: int | None = None,
    announce: Callable[[int, int, float], None] | None = None,
) -> Recipe:
    """Calibrate and write the recipe, and its page beside it (`output` with the suffix .html).

    A run that was stopped goes on from what it had measured.

    Args:
        plan: what to do.
        output: the recipe's file.
        force: replace a recipe that is there already.
        threads: of the CPU; None is torch's choice.
        announce: called with the numbers of settings and samples and the estimated seconds before the search begins.

    Raises:
        CheckpointError, BackendError, RequestError, OutputError: see `Calibration` and `write_recipe`.
    """
    if threads is not None:
        limit_threads(threads)
    with enough_memory(plan.device):
        return _calibrate(plan, output, force, announce)


def _calibrate(
    plan: CalibrationPlan, output: Path, force: bool, announce: Callable[[int, int, float], None] | None
) -> Recipe:
    calibration = Calibration(plan, output.with_name(output.name + JOURNAL_SUFFIX))
    finished = False
    try:
        seconds = calibration.estimate()
        if announce is not None:
            announce(len(calibration.candidates), calibration.rungs[-1], seconds)
        recipe = calibration.run()
        write_page(output.with_suffix(PAGE_SUFFIX), recipe, calibration.examples(recipe))
        write_recipe(recipe, output, force)
        finished = True
    finally:
        calibration.measured.close(finished)
    return recipe


def _sentence(text: str) -> tuple[str, ...]:
    """A warning as a sentence; none of an empty one."""
    return (f"{text[0].upper()}{text[1:]}.",) if text else ()
