"""What is checked and counted before long work begins: exports, builds and calibrations as values that can be run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iwp_export.bundle.recipe import Objective, Recipe
    from iwp_export.bundle.store import Bundle
    from iwp_export.calibrator.plan import CalibrationPlan
    from iwp_export.engine.build import BuildPlan, BuildSettings
    from iwp_export.exporter.loading import Device
    from iwp_export.exporter.plan import Dtype, ExportPlan
    from iwp_export.pruning.settings import PruningSettings

# Torch, transformers and TensorRT are imported where they are used: a robot has not all of them.


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
        from iwp_export.calibrator.calibration import calibrate

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

    Arguments are `api.export`'s, and `check_output`: refuse an output that is there already. No weights are fetched,
    and of those that are here no more is read than a recipe's model is told by.
    """
    from iwp_export.bundle.store import BundleWriter
    from iwp_export.engine.files import SUFFIX
    from iwp_export.exporter.plan import plan_export as plan_bundle

    output = Path(output)
    choices: Any = {"recipe": recipe, "any_model": force, "dtype": dtype, "revision": revision}
    if output.suffix != SUFFIX:
        BundleWriter(output, force or not check_output)  # refuses what is there already
        return ExportJob(plan_bundle(model, pruning, **choices), None, output, force)
    from iwp_export.engine.build import BuildSettings, choose_machine, plan_build
    from iwp_export.engine.files import EngineWriter

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
    """Check everything that can be checked before a calibration; no weights are read. See `api.calibrate`."""
    from iwp_export.calibrator.plan import plan_calibration as plan

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


def plan_build(
    bundle: Path | str, output: Path | str, settings: BuildSettings | None = None, *, force: bool = False
) -> BuildJob:
    """Check everything that can be checked before a build. Arguments are `api.build`'s."""
    from iwp_export.bundle.store import Bundle
    from iwp_export.engine.build import BuildSettings, choose_machine, plan_for_bundle
    from iwp_export.engine.files import EngineWriter

    EngineWriter(output, force)
    settings = settings or BuildSettings()
    machine = choose_machine(settings)
    opened = Bundle.open(bundle)
    return BuildJob(opened, plan_for_bundle(opened, machine, settings), Path(output), force)
