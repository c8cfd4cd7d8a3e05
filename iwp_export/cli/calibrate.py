"""`iwp-export calibrate MODEL`: pruning settings that keep this model's answers, chosen on the user's own images."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from iwp_export import jobs
from iwp_export.cli.export import default_name
from iwp_export.errors import BackendError
from iwp_export.models import ALIASES
from iwp_export.tables import table

if TYPE_CHECKING:
    from iwp_export.bundle.recipe import CandidateFigures, Recipe

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
OBJECTIVES = ("kl", "agreement", "accuracy")
SHOWN = 8
"""Candidates in the table on the terminal; the page has all."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("model", metavar="MODEL", help=f"a folder, a Hub id (owner/name) or one of: {', '.join(ALIASES)}")
    add("-o", "--output", metavar="FILE", type=Path, help="the recipe (default: MODEL.recipe.json); its page beside it")
    add("--force", action="store_true", help="replace a recipe that is there already")
    add("--json", action="store_true", help="print the recipe")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", metavar="PATH", type=Path, help="folder of images, or JSON lines with image, prompt and maybe answer"
    )
    data.add_argument("--prompts", metavar="FILE", type=Path, help="for a folder of images: a prompt a line")
    data.add_argument("--samples", metavar="N", type=int, default=96, help="samples at most (default: 96)")
    data.add_argument("--seed", metavar="N", type=int, default=0, help="of the samples' draw and order (default: 0)")
    data.add_argument("--max-new-tokens", metavar="N", type=int, default=16, help="of an answer (default: 16)")
    search = parser.add_argument_group("search")
    budget = search.add_mutually_exclusive_group()
    budget.add_argument("--keep", metavar="RATIO", type=float, nargs="+", help="keep ratios (default: 0.3)")
    budget.add_argument("--speedup", metavar="X", type=float, help="of the prefill, by operations")
    budget.add_argument("--max-drop", metavar="SHARE", type=share, help="share of answers that may change: 1%% or 0.01")
    search.add_argument(
        "--objective", choices=OBJECTIVES, default="kl", help="what settings are ranked by (default: kl)"
    )
    search.add_argument("--layers", metavar="N", type=int, nargs="+", help="layers to try (default: up to the middle)")
    where = parser.add_argument_group("where it runs")
    where.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    where.add_argument(
        "--dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="auto: the checkpoint's own on a GPU; on a CPU float32 if memory allows, else bfloat16 (default: auto)",
    )
    where.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: torch's choice)")
    where.add_argument("--revision", metavar="REV", help="branch, tag or commit of a Hub id")


def execute(args: argparse.Namespace) -> None:
    """Calibrate, and print what was found."""
    try:
        _calibrate(args)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("iwp_export"):
            raise
        raise BackendError(
            f"calibrating needs {error.name}; to get it: pip install 'iwp-export[export,report]'"
        ) from error


def _calibrate(args: argparse.Namespace) -> None:
    output = args.output or Path(f"{default_name(args.model)}.recipe.json")
    job = jobs.plan_calibration(
        args.model,
        output,
        args.data,
        prompts=args.prompts,
        keep=args.keep,
        speedup=args.speedup,
        max_drop=args.max_drop,
        objective=args.objective,
        layers=args.layers or (),
        samples=args.samples,
        seed=args.seed,
        max_new_tokens=args.max_new_tokens,
        device=args.device,
        dtype=args.dtype,
        threads=args.threads,
        revision=args.revision,
        force=args.force,
    )
    if job.plan.samples.warning:
        print(f"iwp-export: warning: {job.plan.samples.warning}", file=sys.stderr)
    try:
        recipe = job.run(announce)
    except KeyboardInterrupt:
        print("\niwp-export: stopped; the same command goes on from here", file=sys.stderr)
        raise
    if args.json:
        from iwp_export.bundle.recipe import RECIPE_JSON

        print(json.dumps(RECIPE_JSON.to_dict(recipe), indent=2))
        return
    print(describe(recipe))
    print(f"\nwrote {output} and {output.with_suffix('.html').name}")
    print(f"export with it: iwp-export {args.model} --recipe {output}")


def announce(settings: int, samples: int, seconds: float) -> None:
    """Say what will be done and about how long it takes."""
    spent = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    print(f"iwp-export: {settings} settings on up to {samples} samples, about {spent}", file=sys.stderr)


def describe(recipe: Recipe) -> str:
    """The verdict and the best candidates, as text for people."""
    from iwp_export.calibrator.figures import entries

    rows = [["", "layer", "keep", "KL", "agreement", "accuracy", "speed-up", "samples", "differs from the paper in"]]
    found = entries(recipe)
    shown = [entry for number, entry in enumerate(found) if number < SHOWN or entry.kind in ("default", "control")]
    for entry in shown:
        words = entry.words.replace("\u00a0", " ")
        rows.append([entry.says, *_cells(entry.figures), words])
    return "\n".join([*recipe.verdict, "", table(rows)])


def _cells(figures: CandidateFigures) -> list[str]:
    accuracy = "" if figures.accuracy is None else f"{100 * figures.accuracy:.1f} %"
    return [
        str(figures.settings.layer),
        f"{figures.settings.keep:.3g}",
        f"{figures.kl:.4f}",
        f"{100 * figures.agreement:.1f} %",
        accuracy,
        f"{figures.prefill_speedup:.2f}",
        str(figures.samples),
    ]


def share(text: str) -> float:
    """A share as 1% or 0.01, as argparse takes it."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a share such as 1% or 0.01, got {text!r}") from error
