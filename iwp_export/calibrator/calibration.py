"""A calibration: from a checkpoint and samples to a recipe."""

from __future__ import annotations

import importlib.metadata
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
from iwp_export.calibrator.journal import Journal
from iwp_export.calibrator.measurements import Measurements
from iwp_export.calibrator.plan import PAGE_SUFFIX, CalibrationPlan, journal_of
from iwp_export.calibrator.search import DRAWS, Found, Search, candidates, default_settings, rungs_for
from iwp_export.calibrator.verdict import verdict, view
from iwp_export.errors import RequestError
from iwp_export.exporter.live import enough_memory, limit_threads, open_live
from iwp_export.progress import progress
from iwp_export.pruning.cost import PrefillCost
from iwp_export.pruning.settings import LEAST_KEEP, PruningSettings
from iwp_export.runtime.processor import Prompt
from iwp_export.scorer import Scorer
from iwp_export.version import __version__
from iwp_export.view.figures import standard_error
from iwp_export.view.html import write_page

TOOLS = ("torch", "transformers", "numpy")


class Calibration:
    """A calibration whose model is loaded.

    Args:
        plan: what to do.
        journal: a file that keeps scores for a second start; None keeps none.
        force: replace a journal of another calibration.

    Raises:
        CheckpointError, BackendError: the model cannot be loaded.
        OutputError: the journal cannot be written, or is another calibration's.
        RequestError: a sample cannot be asked.
    """

    def __init__(self, plan: CalibrationPlan, journal: Path | None = None, force: bool = False) -> None:
        self.plan, asked = plan, plan.settings
        session, manifest, processor = open_live(plan.export, plan.dtype, asked.device)
        layers = (*plan.candidate_layers, plan.legal_layers[0])
        self._scorer = Scorer(session, manifest, processor, layers, asked.max_new_tokens)
        self.model = RecipeModel(
            plan.export.model.name, plan.export.model.model_type, plan.export.checkpoint.with_weights().digest()
        )
        first = self._read_samples()
        visual = sum(picture.num_tokens for picture in first.pictures)
        cost = PrefillCost.of(plan.export.checkpoint.config.text_config, visual, len(first.token_ids) - visual)
        tried = candidates(plan.budget, plan.candidate_layers, cost)  # an error leaves no journal
        header = {
            "model": self.model.digest,
            "data": plan.samples.digest,
            "seed": asked.seed,
            "dtype": plan.dtype,
            "device": asked.device,
            "max_new_tokens": asked.max_new_tokens,
            "version": __version__,
        }
        questions = plan.samples.questions
        kept = None if journal is None else Journal(journal, header, len(questions), force)
        self.measured = Measurements(self._scorer, questions, plan.keeps, kept)
        self.search = Search(
            measured=self.measured,
            budget=plan.budget,
            objective=asked.objective,
            candidates=tried,
            default=default_settings(plan.budget, plan.candidate_layers, cost),
            # At the lowest layer: above it the text has seen the image.
            blind=PruningSettings(layer=plan.legal_layers[0], keep=LEAST_KEEP).with_changes(importance="random"),
            speedup=lambda settings: cost.speedup(settings.layer, settings.num_keep(cost.visual)),
            rungs=rungs_for(plan.samples.searched),
        )

    def _read_samples(self) -> Prompt:
        """The first sample's prompt; one that cannot be asked is refused before hours of work.

        Raises:
            RequestError: there is one.
        """
        prompts: list[Prompt] = []
        with progress("Reading samples", len(self.plan.samples.questions)) as advance:
            for question in self.plan.samples.questions:
                try:
                    prompts = [*prompts[:1], self._scorer.read(question)]
                except RequestError as error:
                    raise RequestError(f"the question about {question.images[0].name}: {error}") from error
                advance(1)
        return prompts[0]

    def run(self) -> Recipe:
        """Search, and say what was found."""
        plan, search = self.plan, self.search
        found = search.run()
        versions = {name: importlib.metadata.version(name) for name in TOOLS}
        everything = len(found.tried) + (DRAWS + 1) * len(plan.candidate_layers)
        warning = [f"{each[0].upper()}{each[1:]}." for each in [plan.samples.warning] if each]
        return Recipe(
            settings=found.chosen,
            model=self.model,
            data=RecipeData(plan.samples.name, plan.samples.digest, search.count, self.measured.answers),
            search=RecipeSearch(
                budget=str(plan.budget),
                keeps=plan.keeps or (found.chosen.keep,),
                objective=search.objective,
                seed=plan.settings.seed,
                rungs=tuple(search.rungs),
                runs=found.runs,
                runs_of_all=everything * search.count * max(1, len(plan.keeps)),
            ),
            verdict=(*verdict(found), *warning),
            candidates=(
                *(self._row(each, "default" if each == search.default else "candidate", found) for each in found.tried),
                *(self._row(each, "control", found) for each in found.controls),
            ),
            tools={"iwp-export": __version__, **versions},
        )

    def _row(self, settings: PruningSettings, role: Role, found: Found) -> CandidateFigures:
        count = min(self.measured.met(settings), self.search.count)
        kl, changed = (self.measured.losses(settings, range(count), name) for name in ("kl", "agreement"))
        accuracy = None
        if self.measured.has_answers(settings, count):
            accuracy = round(1 - float(self.measured.losses(settings, range(count), "accuracy").mean()), 4)
        return CandidateFigures(
            settings=settings,
            role=role,
            samples=count,
            kl=round(float(kl.mean()), 6),
            kl_error=round(standard_error(kl), 6),
            agreement=round(1 - float(changed.mean()), 4),
            accuracy=accuracy,
            prefill_speedup=round(self.search.speedup(settings), 4),
            chosen=settings == found.chosen and role != "control",
        )


def calibrate(
    plan: CalibrationPlan,
    output: Path,
    *,
    force: bool = False,
) -> Recipe:
    """Calibrate and write the recipe, and its page beside it (`output` with the suffix .html).

    A run that was stopped goes on from what it had measured.

    Args:
        plan: what to do.
        output: the recipe's file.
        force: replace a recipe that is there already, and what was measured for another one.

    Raises:
        CheckpointError, BackendError, RequestError, OutputError: see `Calibration` and `write_recipe`.
    """
    if plan.settings.threads is not None:
        limit_threads(plan.settings.threads)
    with enough_memory(plan.settings.device):
        calibration = Calibration(plan, journal_of(output), force)
        finished = False
        try:
            recipe = calibration.run()
            about = f"{recipe.search.budget} · {recipe.data.samples:,} samples of {recipe.data.name}"
            views = view(recipe)
            write_page(output.with_suffix(PAGE_SUFFIX), views[0].title, about, views)
            write_recipe(recipe, output, force)
            finished = True
        finally:
            calibration.measured.close(finished)
    return recipe
