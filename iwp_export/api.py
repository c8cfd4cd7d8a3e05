"""What the package does, for Python users and the command line alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iwp_export.bundle.recipe import Objective, Recipe
    from iwp_export.bundle.store import Bundle, Verify
    from iwp_export.calibrate.plan import CalibrationPlan
    from iwp_export.engine.build import BuildPlan, BuildSettings
    from iwp_export.estimate.prediction import Estimate
    from iwp_export.export.live import Device
    from iwp_export.export.plan import Dtype, ExportPlan
    from iwp_export.pruning.settings import PruningSettings
    from iwp_export.runtime.images import ImageSource
    from iwp_export.runtime.pipeline import Pipeline
    from iwp_export.validate.latency.gates import Faster
    from iwp_export.validate.reports.report import Report

# Torch, transformers and TensorRT are imported where they are used: a robot has not all of them.


def load(path: Path | str, *, provider: str = "cpu", threads: int | None = None, verify: Verify = "quick") -> Pipeline:
    """Open a bundle or an engine: a pipeline that answers questions about images. Needs no torch.

    See `iwp_export.runtime.pipeline.Pipeline.open` for arguments and errors.
    """
    from iwp_export.runtime.pipeline import Pipeline

    return Pipeline.open(path, provider=provider, threads=threads, verify=verify)


def export(
    model: str,
    output: Path | str,
    pruning: PruningSettings | Mapping[str, Any] | None = None,
    *,
    recipe: Path | str | None = None,
    dtype: Dtype = "auto",
    revision: str | None = None,
    force: bool = False,
    engine: BuildSettings | None = None,
) -> Path:
    """Export a checkpoint to a bundle or, where `output` is NAME.plan, to a TensorRT engine.

    Args:
        model: an alias, a Hub id or a folder.
        output: the bundle's folder, or NAME.plan; it appears whole or not at all.
        pruning: where and how to prune: all settings; or single ones by name, which replace those of the recipe.
        recipe: file of a recipe; or `paper`, the paper's settings. If left out, the recipe that ships for the model,
            else the paper's.
        dtype: element type of weights and activations; `auto` is float16 for a 16-bit checkpoint, else float32.
        revision: branch, tag or commit of a Hub id.
        force: replace what an earlier export wrote there; and take a recipe of another model.
        engine: what an engine is built for.

    Returns:
        `output`.

    Raises:
        OutputError, CheckpointError, RecipeError, SettingsError, BackendError: see `plan_export`, `export_bundle`,
            `build_engine`.
    """
    job = plan_export(model, output, pruning, recipe=recipe, dtype=dtype, revision=revision, force=force, engine=engine)
    return job.run()


def build(
    bundle: Path | str, output: Path | str, settings: BuildSettings | None = None, *, force: bool = False
) -> Path:
    """Build a bundle's engines: NAME.plan and what lies beside it. Needs no torch.

    Args:
        bundle: the bundle's folder.
        output: NAME.plan.
        settings: what to build for.
        force: replace an engine that is there already.

    Returns:
        `output`.

    Raises:
        OutputError, BundleError, SettingsError, BackendError: see `plan_build` and `build_engine`.
    """
    return plan_build(bundle, output, settings, force=force).run()


@dataclass(frozen=True)
class ExportJob:
    """An export that was checked and counted, and has not begun. `engine` is None for a bundle."""

    plan: ExportPlan
    engine: BuildPlan | None
    output: Path
    force: bool = False

    def run(self, source: str | None = None) -> Path:
        """Export; returns the output.

        Args:
            source: arguments of `iwp-export` that repeat an export to an engine.
        """
        from iwp_export.export.exporter import export_bundle

        if self.engine is None:
            return export_bundle(self.plan, self.output, self.force)
        from iwp_export.bundle.staging import Staging
        from iwp_export.bundle.store import Bundle
        from iwp_export.engine.build import build_engine

        self.engine.require_memory()
        with Staging(self.output.with_name(f"{self.output.name}.bundle"), self.output) as staging:
            bundle = Bundle.open(export_bundle(self.plan, staging.folder / "bundle"))  # kept for the build alone
            build_engine(bundle, self.engine, self.output, force=self.force, source=source)
        return self.output


@dataclass(frozen=True)
class BuildJob:
    """A build that was checked and counted, and has not begun."""

    bundle: Bundle
    plan: BuildPlan
    output: Path
    force: bool = False

    def run(self) -> Path:
        """Build; returns the output."""
        from iwp_export.engine.build import build_engine

        build_engine(self.bundle, self.plan, self.output, force=self.force)
        return self.output


@dataclass(frozen=True)
class CalibrationJob:
    """A calibration that was checked, and has not begun."""

    plan: CalibrationPlan
    output: Path
    threads: int | None = None
    force: bool = False

    def run(self, announce: Callable[[int, int, float], None] | None = None) -> Recipe:
        """Calibrate; returns the recipe, which is then written.

        Args:
            announce: called with the numbers of settings and samples and the estimated seconds before the search.
        """
        from iwp_export.calibrate.calibration import calibrate

        return calibrate(self.plan, self.output, force=self.force, threads=self.threads, announce=announce)


def plan_export(
    model: str,
    output: Path | str,
    pruning: PruningSettings | Mapping[str, Any] | None = None,
    *,
    recipe: Path | str | None = None,
    dtype: Dtype = "auto",
    revision: str | None = None,
    force: bool = False,
    engine: BuildSettings | None = None,
    check_output: bool = True,
) -> ExportJob:
    """Check everything that can be checked before an export: the output, this machine, the checkpoint, the sizes.

    Arguments are `export`'s, and `check_output`: refuse an output that is there already. No weights are fetched, and of
    those that are here no more is read than a recipe's model is told by.
    """
    from iwp_export.bundle.store import BundleWriter
    from iwp_export.engine.files import SUFFIX
    from iwp_export.export.plan import plan_export as plan_bundle

    output = Path(output)
    choices: Any = {"recipe": recipe, "any_model": force, "dtype": dtype, "revision": revision}
    if output.suffix != SUFFIX:
        BundleWriter(output, force or not check_output)  # refuses what is there already
        return ExportJob(plan_bundle(model, pruning, **choices), None, output, force)
    from iwp_export.engine.build import BuildSettings, choose_machine, plan_build
    from iwp_export.engine.writer import EngineWriter

    EngineWriter(output, force or not check_output)
    settings = engine or BuildSettings()
    machine = choose_machine(settings)
    plan = plan_bundle(model, pruning, **choices)
    build = plan_build(machine, settings, plan.decoder, plan.vision, plan.settings.keep, plan.weight_bytes)
    return ExportJob(plan, build, output, force)


def plan_calibration(
    model: str,
    output: Path | str,
    data: Path | str | None = None,
    *,
    prompts: Path | str | None = None,
    keep: Sequence[float] | None = None,
    speedup: float | None = None,
    max_drop: float | None = None,
    objective: Objective = "kl",
    layers: Sequence[int] = (),
    samples: int = 96,
    seed: int = 0,
    max_new_tokens: int = 16,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    threads: int | None = None,
    revision: str | None = None,
    force: bool = False,
) -> CalibrationJob:
    """Check everything that can be checked before a calibration. Arguments are `calibrate`'s. No weights are read."""
    from iwp_export.calibrate.plan import plan_calibration as plan

    return CalibrationJob(
        plan(
            model,
            None if data is None else Path(data),
            prompts=None if prompts is None else Path(prompts),
            budgets={"keep": keep, "speedup": speedup, "max_drop": max_drop},
            objective=objective,
            layers=tuple(layers),
            samples=samples,
            seed=seed,
            max_new_tokens=max_new_tokens,
            device=device,
            dtype=dtype,
            revision=revision,
            output=Path(output),
            force=force,
        ),
        Path(output),
        threads,
        force,
    )


def calibrate(model: str, output: Path | str, data: Path | str | None = None, **options: Any) -> Recipe:
    """Choose the pruning settings that keep a model's answers; writes a recipe and its page.

    Args:
        model: an alias, a Hub id or a folder.
        output: the recipe's file; the page is beside it, with the suffix .html.
        data: a folder of images, or a file of questions (JSON lines); left out, what ships for tiny-llava.
        **options: `prompts`: for a folder, a file with a prompt a line. One of `keep` (a list of ratios; [0.3] if none
            is given), `speedup` (of the prefill, by operations) and `max_drop` (share of answers that may change).
            `objective`: kl, agreement or accuracy. `layers`: those to try. `samples`: at most. `seed`: of their draw
            and order. `max_new_tokens`: of an answer. `device`: cpu or cuda. `dtype`: of weights and activations.
            `threads`: of the CPU. `revision`: of a Hub id. `force`: replace a recipe that is there.

    Raises:
        OutputError, CheckpointError, DataError, SettingsError, RequestError, BackendError: see `Calibration`.
    """
    return plan_calibration(model, output, data, **options).run()


def estimate(
    model: str,
    device: str,
    pruning: PruningSettings | Mapping[str, Any] | None = None,
    *,
    recipe: Path | str | None = None,
    weights: str = "fp16",
    text_tokens: int = 64,
    images: int = 1,
    new_tokens: int = 64,
    revision: str | None = None,
) -> Estimate:
    """Estimate a model's speed and memory on a device, with and without pruning. Runs nothing and loads no weights.

    Args:
        model: an alias, a Hub id or a folder; its configuration is enough.
        device: a name of `iwp_export.device.specs.DEVICES`.
        pruning, recipe: as `export`'s; only layer and keep matter here, and a recipe may be of another model.
        weights: `fp16`, `int8` or `int4`, of the decoder's layers.
        text_tokens, images, new_tokens: of the prompt and its answer; images are of a typical size.
        revision: branch, tag or commit of a Hub id.

    Raises:
        CheckpointError: the configuration cannot be found, read or supported.
        RecipeError: the recipe cannot be read.
        SettingsError: an unknown device or kind of weights, a number out of range, or too many tokens for the model.
    """
    from iwp_export.estimate.model import estimate_model

    return estimate_model(
        model,
        device,
        pruning,
        recipe=recipe,
        weights=weights,
        text_tokens=text_tokens,
        images=images,
        new_tokens=new_tokens,
        revision=revision,
    )


def validate(
    artefact: Path | str,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    command: str = "iwp_export.api.validate",
    force: bool = False,
    **settings: Any,
) -> Report:
    """Compare an artefact with its reference, and its answers with the unpruned model's.

    Args:
        artefact: a bundle's folder, or NAME.plan.
        provider, threads: see `load`.
        command: the command line, for the report.
        force: replace a recording that is there already.
        **settings: fields of `iwp_export.validate.validation.ValidationSettings`, such as against, data and max_drop.

    Returns:
        The report; its `passed` says whether every gate holds.

    Raises:
        SettingsError, DataError, BundleError, CheckpointError, BackendError, RequestError, RecordingError, OutputError:
            see `Validation`.
    """
    from iwp_export.validate.validation import Validation, ValidationSettings

    chosen = ValidationSettings(threads=threads, **settings)
    chosen.check()
    pipeline = load(artefact, provider=provider, threads=threads)
    return Validation(pipeline, Path(artefact), chosen).run(command, force)


def bench(
    artefact: Path | str,
    *,
    images: Sequence[ImageSource] = (),
    prompt: str | None = None,
    data: Path | str | None = None,
    limit: int | None = None,
    provider: str = "cpu",
    threads: int | None = None,
    fail_if_slower: Faster | None = None,
    max_ttft_ms: float | None = None,
    max_p99_ms: float | None = None,
    strict: bool = False,
    command: str = "iwp_export.api.bench",
    **settings: Any,
) -> Report:
    """Measure how long an artefact takes to answer, pruned and unpruned in turn. Needs no torch.

    Args:
        artefact: a bundle's folder, or NAME.plan.
        images, prompt: what is asked; samples that ship with the model or a synthetic image if left out.
        data: a file of questions in their place, see `iwp_export.validate.questions`; `limit`: the first so many.
        provider, threads: see `load`.
        fail_if_slower, max_ttft_ms, max_p99_ms: gates, see `iwp_export.validate.latency.gates.LatencyLimits`.
        strict: warnings fail, such as clocks that are not locked.
        command: the command line, for the report.
        **settings: fields of `iwp_export.validate.latency.bench.BenchSettings`, such as keep, new_tokens and pairs.

    Returns:
        The report: its `latency` has the figures, its `passed` says whether every gate holds.

    Raises:
        SettingsError, DataError, RequestError, BundleError, BackendError: see `benchmark`.
    """
    from iwp_export.validate.benchmark import benchmark
    from iwp_export.validate.latency.bench import BenchSettings
    from iwp_export.validate.latency.gates import LatencyLimits
    from iwp_export.validate.latency.workload import QUESTIONS, choose_asks

    limits = LatencyLimits(fail_if_slower, max_ttft_ms, max_p99_ms)
    chosen = BenchSettings(threads=threads, needs_p99=max_p99_ms is not None, **settings)
    pipeline = load(artefact, provider=provider, threads=threads)
    asks = choose_asks(pipeline.manifest, images, prompt, data, QUESTIONS if limit is None else limit)
    return benchmark(pipeline, Path(artefact), asks, chosen, limits, command, strict)


def plan_build(
    bundle: Path | str, output: Path | str, settings: BuildSettings | None = None, *, force: bool = False
) -> BuildJob:
    """Check everything that can be checked before a build. Arguments are `build`'s."""
    from iwp_export.bundle.store import Bundle
    from iwp_export.engine.build import BuildSettings, choose_machine, plan_for_bundle
    from iwp_export.engine.writer import EngineWriter

    EngineWriter(output, force)
    settings = settings or BuildSettings()
    machine = choose_machine(settings)
    opened = Bundle.open(bundle)
    return BuildJob(opened, plan_for_bundle(opened, machine, settings), Path(output), force)
