"""`iwp-export build BUNDLE`: a bundle to TensorRT engines."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwp_export import jobs
from iwp_export.bundle.schema import to_json
from iwp_export.errors import SettingsError
from iwp_export.tables import human_bytes, pairs

if TYPE_CHECKING:
    from iwp_export.engine.build import BuildSettings, Machine
    from iwp_export.jobs import BuildJob

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
    output = args.output or Path(f"{args.bundle.resolve().name.removesuffix('.bundle')}.plan")
    job = jobs.plan_build(args.bundle, output, build_settings(args), force=args.force or args.dry_run)
    if args.dry_run:
        print(json.dumps(summarise(job), indent=2) if args.json else describe(job))
        return
    announce(job.plan.machine)
    path = job.run()
    print(json.dumps({"engine": str(path)}) if args.json else f"wrote {path}")


def build_settings(args: argparse.Namespace) -> BuildSettings:
    """What the arguments of `configure_build` choose.

    Raises:
        SettingsError: `--sm` is empty.
    """
    from iwp_export.engine.build import BuildSettings

    sms = None if args.sm is None else [part.strip() for part in args.sm.split(",") if part.strip()]
    if sms == []:
        raise SettingsError("name at least one architecture, such as 89", options=("sms",))
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


def describe(job: BuildJob) -> str:
    """A build's plan as text for people."""
    manifest, plan = job.bundle.manifest, job.plan
    visual = manifest.vision.tokens.typical
    kept = manifest.pruning.num_keep(visual, plan.keep)
    return pairs(
        [
            ("model", f"{manifest.model.name} ({manifest.decoder.layers} layers, {manifest.decoder.dtype})"),
            ("settings", manifest.pruning_source),
            ("loads on", plan.machine.loads_on),
            ("context", plan.limits),
            ("tuned for", f"keep {plan.keep:.2f}: {kept} of {visual} visual tokens"),
            ("profiles", plan.profiles),
            ("weights", human_bytes(plan.weight_bytes)),
            ("memory", f"about {human_bytes(plan.memory_bytes)} to build"),
        ]
    )


def summarise(job: BuildJob) -> dict[str, Any]:
    """A build's plan as JSON values."""
    source = to_json(job.bundle.manifest.pruning_source)
    return {"bundle": str(job.bundle.folder), **job.plan.to_dict(), "pruning_source": source}
