"""What the package does, for Python users and the command line alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwp_export.jobs import plan_build, plan_calibration, plan_export

if TYPE_CHECKING:
    from iwp_export.bundle.recipe import Recipe
    from iwp_export.bundle.store import Verify
    from iwp_export.engine.build import BuildSettings
    from iwp_export.estimator.prediction import Estimate
    from iwp_export.exporter.plan import Dtype
    from iwp_export.latency.gates import Faster
    from iwp_export.pruning.settings import PruningSettings
    from iwp_export.reports.report import Report
    from iwp_export.runtime.images import ImageSource
    from iwp_export.runtime.pipeline import Pipeline

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
    from iwp_export.estimator.model import estimate_model

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
        **settings: fields of `iwp_export.reports.validation.ValidationSettings`, such as against, data and max_drop.

    Returns:
        The report; its `passed` says whether every gate holds.

    Raises:
        SettingsError, DataError, BundleError, CheckpointError, BackendError, RequestError, RecordingError, OutputError:
            see `Validation`.
    """
    from iwp_export.reports.validation import Validation, ValidationSettings

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
        data: a file of questions in their place, see `iwp_export.questions`; `limit`: the first so many.
        provider, threads: see `load`.
        fail_if_slower, max_ttft_ms, max_p99_ms: gates, see `iwp_export.latency.gates.LatencyLimits`.
        strict: warnings fail, such as clocks that are not locked.
        command: the command line, for the report.
        **settings: fields of `iwp_export.latency.bench.BenchSettings`, such as keep, new_tokens and pairs.

    Returns:
        The report: its `latency` has the figures, its `passed` says whether every gate holds.

    Raises:
        SettingsError, DataError, RequestError, BundleError, BackendError: see `benchmark`.
    """
    from iwp_export.latency.bench import BenchSettings
    from iwp_export.latency.gates import LatencyLimits
    from iwp_export.latency.workload import QUESTIONS, choose_asks
    from iwp_export.reports.benchmark import benchmark

    limits = LatencyLimits(fail_if_slower, max_ttft_ms, max_p99_ms)
    chosen = BenchSettings(threads=threads, needs_p99=max_p99_ms is not None, **settings)
    pipeline = load(artefact, provider=provider, threads=threads)
    asks = choose_asks(pipeline.manifest, images, prompt, data, QUESTIONS if limit is None else limit)
    return benchmark(pipeline, Path(artefact), asks, chosen, limits, command, strict)
