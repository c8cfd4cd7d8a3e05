"""What the package does, for Python users and the command line alike.

Torch, transformers and TensorRT are imported where they are used: a robot has not all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from iwp_export.errors import BundleError, CheckpointError, IwpError, OutputError, SettingsError
from iwp_export.settings import (
    BenchSettings,
    BuildSettings,
    CalibrationSettings,
    CheckpointDtype,
    Device,
    Dtype,
    Faster,
    Objective,
    ScoreName,
    Settings,
    ValidationSettings,
)

if TYPE_CHECKING:
    from iwp_export.bundle.recipe import Recipe
    from iwp_export.bundle.store import Bundle
    from iwp_export.bundle.verify import Verify
    from iwp_export.engine.build import BuildPlan
    from iwp_export.estimator.estimate import Estimate
    from iwp_export.exporter.plan import ExportPlan
    from iwp_export.pruning.settings import PruningSettings
    from iwp_export.reports.report import Report
    from iwp_export.runtime.images import ImageSource
    from iwp_export.runtime.pipeline import Pipeline

T = TypeVar("T", bound=Settings)


def load(path: Path | str, *, provider: str = "cpu", threads: int | None = None, verify: Verify = "quick") -> Pipeline:
    """Open a bundle or an engine: a pipeline that answers questions about images. Needs no torch.

    See `iwp_export.runtime.pipeline.Pipeline.open` for arguments and errors.
    """
    path = _plain(path, BundleError)
    from iwp_export.runtime.pipeline import Pipeline

    return Pipeline.open(path, provider=provider, threads=threads, verify=verify)


def export(
    model: Path | str,
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
        OutputError, CheckpointError, RecipeError, SettingsError, BackendError: see `export_bundle`, `build_engine`.
    """
    job = plan_export(model, output, pruning, recipe=recipe, dtype=dtype, revision=revision, force=force, engine=engine)
    return job.run()


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
        from iwp_export.exporter.exporter import export_bundle

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


def plan_export(
    model: Path | str,
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

    Arguments are those of `export`, and `check_output`: refuse an output that is there already. No weights are fetched,
    and of those that are here no more is read than a recipe's model is told by.
    """
    from iwp_export.bundle.store import BundleWriter
    from iwp_export.engine.files import SUFFIX
    from iwp_export.exporter.plan import plan_export as plan_bundle

    model, output = str(_plain(model, CheckpointError)), _plain(output, OutputError)
    choices: dict[str, Any] = {"recipe": recipe, "any_model": force, "dtype": dtype, "revision": revision}
    if output.suffix != SUFFIX:
        BundleWriter(output, force or not check_output)  # refuses what is there already
        return ExportJob(plan_bundle(model, pruning, **choices), None, output, force)
    from iwp_export.engine.build import choose_machine
    from iwp_export.engine.build import plan_build as plan_engine
    from iwp_export.engine.files import EngineWriter

    EngineWriter(output, force or not check_output)
    settings = engine or BuildSettings()
    _check_timing_cache(settings, model)
    machine = choose_machine(settings)
    plan = plan_bundle(model, pruning, **choices)
    build = plan_engine(machine, settings, plan.decoder, plan.vision, plan.settings.keep, plan.weight_bytes)
    return ExportJob(plan, build, output, force)


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
        OutputError, BundleError, SettingsError, BackendError: see `build_engine`.
    """
    from iwp_export.engine.build import build_engine

    build_engine(*plan_build(bundle, output, settings, force=force), output, force=force)
    return Path(output)


def plan_build(
    bundle: Path | str, output: Path | str, settings: BuildSettings | None = None, *, force: bool = False
) -> tuple[Bundle, BuildPlan]:
    """Check everything that can be checked before a build. Arguments are those of `build`."""
    from iwp_export.bundle.store import Bundle
    from iwp_export.engine.build import choose_machine, plan_for_bundle
    from iwp_export.engine.files import EngineWriter

    bundle, output = _plain(bundle, BundleError), _plain(output, OutputError)
    EngineWriter(output, force)
    settings = settings or BuildSettings()
    _check_timing_cache(settings, bundle)
    machine = choose_machine(settings)
    opened = Bundle.open(bundle)
    return opened, plan_for_bundle(opened, machine, settings)


def calibrate(
    model: Path | str,
    output: Path | str,
    data: Path | str | None = None,
    *,
    prompts: Path | str | None = None,
    keep: Sequence[float] | None = None,
    speedup: float | None = None,
    max_drop: float | None = None,
    objective: Objective = CalibrationSettings.objective,
    layers: Sequence[int] = CalibrationSettings.layers,
    samples: int = CalibrationSettings.samples,
    seed: int = CalibrationSettings.seed,
    max_new_tokens: int = CalibrationSettings.max_new_tokens,
    device: Device = CalibrationSettings.device,
    dtype: Dtype = CalibrationSettings.dtype,
    threads: int | None = None,
    revision: str | None = None,
    force: bool = False,
) -> Recipe:
    """Choose the pruning settings that keep a model's answers; writes a recipe and its page.

    Args:
        model: an alias, a Hub id or a folder.
        output: the recipe's file; the page is beside it, with the suffix .html.
        data: a folder of images, or a file of questions (JSON lines); None for what ships for tiny-llava.
        keep, speedup, max_drop: the budget, one of them; keep [0.3] if none is given.
        force: replace a recipe that is there.
        prompts, objective, layers, samples, seed, max_new_tokens, device, dtype, threads, revision: see the fields of
            `iwp_export.settings.CalibrationSettings`.

    Returns:
        The recipe that was written.

    Raises:
        OutputError, CheckpointError, DataError, SettingsError, RequestError, BackendError: see `Calibration`.
    """
    settings, model, output = _settings(CalibrationSettings, locals()), _plain(model, CheckpointError), Path(output)
    from iwp_export.calibrator.calibration import calibrate as run
    from iwp_export.calibrator.plan import plan_calibration

    return run(plan_calibration(str(model), output, settings, force), output, force=force)


def estimate(
    model: Path | str,
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
    """Estimate a model's memory and decoding speed on a device, pruned and not; runs nothing and loads no weights.

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
    from iwp_export.estimator.estimate import estimate_model

    return estimate_model(
        str(_plain(model, CheckpointError)),
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
    against: Path | str = ValidationSettings.against,
    checkpoint: Path | str | None = None,
    record: Path | str | None = None,
    hidden_states: bool = False,
    parity_samples: int = ValidationSettings.parity_samples,
    parity_tokens: int | None = None,
    data: Path | str | None = None,
    limit: int | None = None,
    keep: Sequence[float] = ValidationSettings.keep,
    score: ScoreName = ValidationSettings.score,
    max_new_tokens: int = ValidationSettings.max_new_tokens,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    monitors: bool = False,
    provider: str = ValidationSettings.provider,
    threads: int | None = None,
    device: Device = ValidationSettings.device,
    checkpoint_dtype: CheckpointDtype = ValidationSettings.checkpoint_dtype,
    strict: bool = False,
    force: bool = False,
) -> Report:
    """Compare an artefact with its reference, and its answers with the unpruned model's.

    Args:
        artefact: a bundle's folder, or NAME.plan.
        force: replace a recording that is there already.
        against, checkpoint, record, hidden_states, parity_samples, parity_tokens: what it is compared with, and on
            what; see the fields of `iwp_export.settings.ValidationSettings`, also for the others.
        data, limit, keep, score, max_new_tokens: what accuracy is measured on, at which keep ratios, and how.
        max_drop, min_agreement: gates; the lower end of the 95 % interval counts.
        monitors, provider, threads, device, checkpoint_dtype, strict: where it runs, and what else it shows or refuses.

    Returns:
        The report; its `passed` says whether every gate holds.

    Raises:
        SettingsError, DataError, BundleError, CheckpointError, BackendError, RequestError, RecordingError, OutputError:
            see `iwp_export.reports.measure`.
    """
    settings, artefact = _settings(ValidationSettings, locals()), _plain(artefact, BundleError)
    from iwp_export.reports import measure

    return measure.validate(artefact, settings, "iwp_export.validate", force)


def bench(
    artefact: Path | str,
    *,
    images: Sequence[ImageSource] = (),
    prompt: str | None = None,
    data: Path | str | None = None,
    limit: int = BenchSettings.limit,
    new_tokens: int = BenchSettings.new_tokens,
    keep: float | None = None,
    pairs: int | None = None,
    warmup: int = BenchSettings.warmup,
    repeat: int = BenchSettings.repeat,
    provider: str = BenchSettings.provider,
    threads: int | None = None,
    fail_if_slower: Faster | None = None,
    max_ttft_ms: float | None = None,
    max_p99_ms: float | None = None,
    strict: bool = False,
) -> Report:
    """Measure how long an artefact takes to answer, pruned and unpruned in turn. Needs no torch.

    Args:
        artefact: a bundle's folder, or NAME.plan.
        images, prompt: what is asked; samples that ship with the model or a synthetic image if left out.
        data, limit, new_tokens, keep: a file of questions in their place, and the answers; see the fields of
            `iwp_export.settings.BenchSettings`, also for the others.
        pairs, warmup, repeat, provider, threads: how it is measured.
        fail_if_slower, max_ttft_ms, max_p99_ms, strict: gates, times in milliseconds.

    Returns:
        The report: its `latency` has the figures, its `passed` says whether every gate holds.

    Raises:
        SettingsError, DataError, RequestError, BundleError, BackendError: see `iwp_export.reports.measure`.
    """
    settings, artefact = _settings(BenchSettings, locals()), _plain(artefact, BundleError)
    from iwp_export.reports import measure

    return measure.benchmark(artefact, settings, images, "iwp_export.bench")


def _check_timing_cache(settings: BuildSettings, source: Path | str) -> None:
    """Refuse a file that must not be written; one that is there is read, and TensorRT refuses what is no cache."""
    from iwp_export.bundle.outputs import check_outputs

    if settings.timing_cache is not None:
        check_outputs([settings.timing_cache], True, [source], option="timing_cache")


def _settings(kind: type[T], arguments: Mapping[str, Any]) -> T:
    """The settings among a function's arguments."""
    settings = kind(**{each.name: arguments[each.name] for each in fields(kind)})
    for path in vars(settings).values():
        if isinstance(path, Path):
            _plain(path, SettingsError)
    return settings


def _plain(path: Path | str, error: type[IwpError]) -> Path:
    """A path that the system can be asked about: NUL and halves of characters are refused before it raises."""
    from iwp_export.bundle.outputs import plain_name

    return Path(plain_name(Path(path), error))
