"""What the package does, for Python users and the command line alike: export, build, load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iwp_export.bundle.store import Bundle, Verify
    from iwp_export.engine.build import BuildPlan, BuildSettings
    from iwp_export.export.plan import Dtype, ExportPlan
    from iwp_export.pruning.settings import PruningSettings
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
