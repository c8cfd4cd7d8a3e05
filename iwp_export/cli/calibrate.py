"""`iwp-export calibrate MODEL`: pruning settings that keep this model's answers, chosen on the user's own images."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from iwp_export.cli import flags
from iwp_export.cli.export import default_name
from iwp_export.models import ALIASES
from iwp_export.settings import CalibrationSettings

DESCRIPTION = (
    "Choose the pruning settings that keep this model's answers, from your own images and questions. Writes a\n"
    "recipe, which an export takes, and a page that shows what was tried. Runs the checkpoint in torch."
)
EXAMPLES = """\
  iwp-export calibrate tiny-llava --keep 0.222 -o recipe.json            on samples that ship with tiny-llava
  iwp-export calibrate ./my-llava --data shots/ --prompts asked.txt      a folder of images, a prompt a line
  iwp-export calibrate ./my-llava --data questions.jsonl --speedup 1.5   layer and keep ratio together
  iwp-export calibrate ./my-llava --data questions.jsonl --max-drop 1%   the fastest that keeps the answers
  iwp-export ./my-llava --recipe my-llava.recipe.json                    export with it
"""
NEEDS = ("calibrating", "export,report")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("model", metavar="MODEL", help=f"a folder, a Hub id (owner/name) or one of: {', '.join(ALIASES)}")
    add("-o", "--output", metavar="FILE", type=Path, help="the recipe (default: MODEL.recipe.json); its page beside it")
    add("--force", action="store_true", help="replace a recipe that is there already")
    add("--json", action="store_true", help="print the recipe")
    flags.add(parser, CalibrationSettings)


def execute(args: argparse.Namespace) -> None:
    """Calibrate, and print what was found."""
    output = args.output or Path(f"{default_name(args.model)}.recipe.json")
    settings = flags.read(args, CalibrationSettings)
    from iwp_export.calibrator.plan import plan_calibration

    plan = plan_calibration(args.model, output, settings, args.force)
    if plan.samples.warning:
        print(f"iwp-export: warning: {plan.samples.warning}", file=sys.stderr)
    from iwp_export.calibrator.calibration import calibrate
    from iwp_export.calibrator.verdict import view
    from iwp_export.view import terminal

    try:
        recipe = calibrate(plan, output, force=args.force)
    except KeyboardInterrupt:
        print("\niwp-export: stopped; the same command goes on from here", file=sys.stderr)
        raise
    if args.json:
        from iwp_export.bundle.recipe import RECIPE_JSON

        print(json.dumps(RECIPE_JSON.to_dict(recipe), indent=2))
        return
    print(terminal.render(view(recipe)[:1]))
    print(f"\nwrote {output} and {output.with_suffix('.html').name}")
    print(f"export with it: iwp-export {args.model} --recipe {output}")
