"""`iwp-export build BUNDLE`: a bundle to TensorRT engines."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwp_export.errors import SettingsError
from iwp_export.tables import human_bytes, pairs

if TYPE_CHECKING:
    from iwp_export.engine.build import BuildPlan, BuildSettings, Machine
    from iwp_export.engine.files import EngineInfo
    from iwp_export.pruning.settings import PruningSettings

DESCRIPTION = (
    "Build TensorRT engines from a bundle, for this machine's TensorRT or, with TensorRT-RTX, for RTX cards\n"
    "from any machine: that needs no GPU. Needs no torch."
)
EXAMPLES = """\
  iwp-export build my.bundle -o engine.plan                              TensorRT with a GPU, else TensorRT-RTX
  iwp-export build my.bundle -o engine.plan --target rtx --sm 89,120     RTX 40 and RTX 50 cards
  iwp-export build my.bundle -o engine.plan --max-context 2048 --dry-run
"""
TARGETS = ("rtx", "tensorrt")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", type=Path, help="folder that an export wrote")
    add("-o", "--output", metavar="NAME.plan", type=Path, help="engine to write (default: BUNDLE's name, here)")
    add("--force", action="store_true", help="replace an engine that is there already")
    add("--dry-run", action="store_true", help="check everything, print sizes, build nothing")
    add("--json", action="store_true", help="print the result, or the dry run, as JSON")
    keep = "keep ratio that kernels are chosen for (default: the bundle's); a request may choose another"
    add("--keep", metavar="RATIO", type=float, help=keep)
    configure_build(parser, "engine")


def configure_build(parser: argparse.ArgumentParser, title: str) -> None:
    """Declare what a build may choose; the export to NAME.plan has the same options."""
    group = parser.add_argument_group(title)
    group.add_argument("--target", choices=TARGETS, help="rtx: TensorRT-RTX; tensorrt: this machine's TensorRT and GPU")
    group.add_argument("--sm", metavar="LIST", help="with rtx: architectures to compile for (default: 86,89,120)")
    for name, text in (
        ("context", "tokens of a conversation, before pruning (default: 4096, or the model's positions)"),
        ("prompt", "tokens of one call, text and visual (default: its images and 512)"),
        ("images", "images of one call (default: 1)"),
    ):
        group.add_argument(f"--max-{name}", metavar="N", type=int, help=text)
    profiles = "1: weights once; 2: kernels of their own for decode steps (default: 1 with rtx, else 2)"
    group.add_argument("--profiles", metavar="N", type=int, help=profiles)
    group.add_argument("--timing-cache", metavar="FILE", type=Path, help="with tensorrt: kernels measured earlier")
    group.add_argument("--plugin", metavar="LIBRARY", type=Path, help="the C++ plugin, in place of the one in Python")
    group.add_argument("--skip-memory-check", action="store_true", help="build even if memory seems too small")


def execute(args: argparse.Namespace) -> None:
    """Build, or with `--dry-run` say what a build would make."""
    from iwp_export.engine.build import build_engine, plan_build

    settings = build_settings(args)
    output = args.output or Path(f"{args.bundle.resolve().name.removesuffix('.bundle')}.plan")
    plan = plan_build(args.bundle, settings)
    if args.dry_run:
        print(json.dumps(plan.to_dict(), indent=2) if args.json else describe(plan))
        return
    announce(plan.machine)
    info = build_engine(args.bundle, output, settings, force=args.force)
    print(json.dumps(result(output, info)) if args.json else f"wrote {output}")


def export_engine(args: argparse.Namespace, pruning: PruningSettings, output: Path, options: str) -> EngineInfo:
    """Export a checkpoint to a bundle that is kept no longer than it takes to build an engine from it.

    Whether an engine can be built here, and whether the model fits, is checked before the export.

    Args:
        args: the arguments of the export and of `configure_build`.
        pruning: where and how to prune.
        output: NAME.plan.
        options: arguments of `iwp-export` that repeat this export.
    """
    from iwp_export.engine.build import build_engine, choose_machine, choose_profiles
    from iwp_export.engine.memory import require_memory
    from iwp_export.engine.writer import EngineWriter
    from iwp_export.export.exporter import export_bundle
    from iwp_export.export.plan import plan_export

    settings = build_settings(args)
    EngineWriter(output, args.force)
    machine = choose_machine(settings)
    plan = plan_export(args.model, pruning, dtype=args.dtype, revision=args.revision)
    settings.limits(plan.decoder, plan.vision)
    if settings.check_memory:
        require_memory("engine", plan.weight_bytes, choose_profiles(machine, settings))
    announce(machine)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        bundle = export_bundle(args.model, Path(folder) / "bundle", pruning, dtype=args.dtype, revision=args.revision)
        return build_engine(bundle, output, settings, force=args.force, source=options)


def build_settings(args: argparse.Namespace) -> BuildSettings:
    """What the arguments of `configure_build` choose.

    Raises:
        SettingsError: `--sm` is empty.
    """
    from iwp_export.engine.build import BuildSettings

    sms = None if args.sm is None else [part.strip() for part in args.sm.split(",") if part.strip()]
    if sms == []:
        raise SettingsError("--sm must name at least one architecture, such as 89")
    return BuildSettings(
        target=args.target,
        sms=sms,
        max_context=args.max_context,
        max_prompt=args.max_prompt,
        max_images=1 if args.max_images is None else args.max_images,
        profiles=args.profiles,
        keep=args.keep,
        timing_cache=args.timing_cache,
        plugin_library=args.plugin,
        check_memory=not args.skip_memory_check,
    )


def announce(machine: Machine) -> None:
    """Say, before the work, on what the engine will load: engines are not portable."""
    print(f"the engine will load on {machine.loads_on}, and on nothing else", file=sys.stderr)


def describe(plan: BuildPlan) -> str:
    """A plan as text for people."""
    manifest = plan.bundle.manifest
    visual = manifest.vision.tokens.typical
    rows: list[tuple[str, Any]] = [
        ("model", f"{manifest.model.name} ({manifest.decoder.layers} layers, {manifest.decoder.dtype})"),
        ("loads on", plan.machine.loads_on),
        ("context", plan.limits),
        (
            "tuned for",
            f"keep {plan.keep:.2f}: {manifest.pruning.num_keep(visual, plan.keep)} of {visual} visual tokens",
        ),
        ("profiles", plan.profiles),
        ("weights", human_bytes(plan.weight_bytes)),
        ("memory", f"about {human_bytes(plan.memory_bytes)} to build"),
    ]
    return pairs(rows)


def result(output: Path, info: EngineInfo) -> dict[str, Any]:
    """What was written, as JSON values."""
    return {"engine": str(output), "fingerprint": asdict(info.fingerprint), "limits": asdict(info.limits)}
