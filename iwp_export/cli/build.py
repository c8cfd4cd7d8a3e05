"""`iwp-export build BUNDLE`: a bundle to TensorRT engines."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwp_export import api
from iwp_export.bundle.schema import to_json
from iwp_export.cli import flags
from iwp_export.settings import BuildSettings
from iwp_export.view.terminal import human_bytes, table

if TYPE_CHECKING:
    from iwp_export.bundle.manifest import Manifest
    from iwp_export.bundle.store import Bundle
    from iwp_export.engine.build import BuildPlan, Machine

DESCRIPTION = (
    "Build TensorRT engines from a bundle, for this machine's TensorRT or, with TensorRT-RTX, for RTX cards\n"
    "from any machine: that needs no GPU. Needs no torch."
)
EXAMPLES = """\
  iwp-export build my.bundle -o engine.plan                              TensorRT with a GPU, else TensorRT-RTX
  iwp-export build my.bundle -o engine.plan --target rtx --sm 89,120     RTX 40 and RTX 50 cards
  iwp-export build my.bundle -o engine.plan --max-context 2048 --dry-run
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", type=Path, help="folder that an export wrote")
    add("-o", "--output", metavar="NAME.plan", type=Path, help="engine to write (default: BUNDLE's name, here)")
    add("--force", action="store_true", help="replace an engine that is there already")
    add("--dry-run", action="store_true", help="check everything, print sizes, build nothing")
    add("--json", action="store_true", help="print the result, or the dry run, as JSON")
    flags.add(parser, BuildSettings, title="engine")


def execute(args: argparse.Namespace) -> None:
    """Build, or with `--dry-run` say what a build would make."""
    from iwp_export.engine.build import build_engine

    output = args.output or Path(f"{args.bundle.resolve().name.removesuffix('.bundle')}.plan")
    bundle, plan = api.plan_build(
        args.bundle, output, flags.read(args, BuildSettings), force=args.force or args.dry_run
    )
    if args.dry_run:
        print(json.dumps(summarise(bundle, plan), indent=2) if args.json else describe(bundle.manifest, plan))
        return
    announce(plan.machine)
    build_engine(bundle, plan, output, force=args.force)
    print(json.dumps({"engine": str(output)}) if args.json else f"wrote {output}")


def announce(machine: Machine) -> None:
    """Say, before the work, on what the engine will load: engines are not portable."""
    print(f"the engine will load on {machine.loads_on}, and on nothing else", file=sys.stderr)


def describe(manifest: Manifest, plan: BuildPlan) -> str:
    """A build's plan as text for people."""
    visual = manifest.vision.tokens.typical
    kept = manifest.pruning.num_keep(visual, plan.keep)
    facts = [
        ("model", f"{manifest.model.name} ({manifest.decoder.layers} layers, {manifest.decoder.dtype})"),
        ("settings", manifest.pruning_source),
        ("loads on", plan.machine.loads_on),
        ("context", plan.limits),
        ("tuned for", f"keep {plan.keep:#.2g}: {kept} of {visual} visual tokens"),
        ("profiles", plan.profiles),
        ("weights", human_bytes(plan.weight_bytes)),
        ("memory", f"about {human_bytes(plan.memory_bytes)} to build"),
    ]
    return table(facts)


def summarise(bundle: Bundle, plan: BuildPlan) -> dict[str, Any]:
    """A build's plan as JSON values."""
    source = to_json(bundle.manifest.pruning_source)
    return {"bundle": str(bundle.folder), **plan.to_dict(), "pruning_source": source}
