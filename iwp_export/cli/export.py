"""`iwp-export MODEL`: a checkpoint to a bundle."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from iwp_export import api
from iwp_export.bundle.manifest import option_words
from iwp_export.bundle.schema import to_json
from iwp_export.cli import flags
from iwp_export.cli.build import announce
from iwp_export.models import ALIASES
from iwp_export.pruning.settings import PruningSettings
from iwp_export.settings import BuildSettings, Dtype
from iwp_export.view.terminal import human_bytes, table

if TYPE_CHECKING:
    from iwp_export.exporter.plan import ExportPlan

DESCRIPTION = (
    "Export a vision-language model as a bundle (ONNX) whose visual tokens are pruned\n"
    "inside the language model. The bundle runs without torch."
)
EXAMPLES = """\
  iwp-export tiny-llava --keep 0.3                      write tiny-llava.bundle
  iwp-export llava --keep 0.3 --dry-run                 print sizes, export nothing
  iwp-export ./my-llava --dtype float16 -o my.bundle    export a local checkpoint
  iwp-export ./my-llava --recipe my-llava.json          with settings that were chosen for it
  iwp-export llava --keep 0.3 -o engine.plan            a TensorRT engine for what is here, else for RTX cards
  iwp-export run tiny-llava.bundle --image photo.png --prompt "how many digits ?"
"""
TEXT_TOKENS = 64
"""Text of the request whose cache a dry run measures: a template and a sentence or two."""
RECIPE_HELP = "settings that calibrate found; or paper (default: a recipe that ships for the model, else paper)"
NEEDS = ("exporting", "export")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    aliases = ", ".join(ALIASES)
    parser.add_argument("model", metavar="MODEL", help=f"a folder, a Hub id (owner/name) or one of: {aliases}")
    out = parser.add_argument_group("output")
    out.add_argument(
        "-o",
        "--output",
        metavar="NAME",
        type=Path,
        help="bundle, or NAME.plan: an engine (default: MODEL.bundle)",
    )
    force = "replace what is there already; and take a recipe of another model"
    out.add_argument("--force", action="store_true", help=force)
    out.add_argument(
        "--dtype",
        choices=get_args(Dtype),
        default="auto",
        help="bfloat16 needs a GPU; auto is float16 for a 16-bit checkpoint, else float32 (default: auto)",
    )
    out.add_argument("--revision", metavar="REV", help="branch, tag or commit of a Hub id")
    out.add_argument("--dry-run", action="store_true", help="print settings and sizes, and export nothing")
    out.add_argument("--json", action="store_true", help="print the result, or the dry run, as JSON")
    recipes = "each option replaces one setting of the recipe; the defaults are those of the paper"
    prune = parser.add_argument_group("pruning", recipes)
    prune.add_argument("--recipe", metavar="FILE", help=RECIPE_HELP)
    flags.add(parser, PruningSettings)
    flags.add(parser, BuildSettings, skip=("keep",), title="engine (with -o NAME.plan)")


def execute(args: argparse.Namespace) -> None:
    """Export, or with `--dry-run` say what an export would write."""
    output = args.output or Path(f"{default_name(args.model)}.bundle")
    job = api.plan_export(
        args.model,
        output,
        flags.given(args, PruningSettings),
        recipe=args.recipe,
        dtype=args.dtype,
        revision=args.revision,
        force=args.force,
        engine=flags.read(args, BuildSettings),
        check_output=not args.dry_run,
    )
    if args.dry_run:
        print(json.dumps(summarise(job.plan), indent=2) if args.json else describe(job.plan))
        return
    if job.engine is not None:
        announce(job.engine.machine)
    path, source = job.run(repeat(args, job.plan)), job.plan.pruning.source
    kind = "bundle" if job.engine is None else "engine"
    written = json.dumps({kind: str(path), "pruning_source": to_json(source)})
    print(written if args.json else f"wrote {path}; settings: {source}")


def repeat(args: argparse.Namespace, plan: ExportPlan) -> str:
    """The arguments that repeat an export, without its output. A recipe that ships later must not change it."""
    recipe = "paper" if plan.pruning.source.kind == "paper" else args.recipe
    given = {"recipe": recipe, **flags.given(args, PruningSettings)}
    given |= {"dtype": None if args.dtype == "auto" else args.dtype, "revision": args.revision}
    given = {name: value for name, value in given.items() if value is not None}
    return " ".join([shlex.quote(args.model), *option_words(given)])


def default_name(model: str) -> str:
    """Name of a model's bundle: its alias, or the last part of its folder or Hub id."""
    if model in ALIASES:
        return model
    return Path(model).expanduser().resolve().name or "model"


def describe(plan: ExportPlan) -> str:
    """A plan as text for people."""
    model, decoder, settings = plan.model, plan.decoder, plan.settings
    full, pruned = (human_bytes(plan.cache_bytes(TEXT_TOKENS, pruned)) for pruned in (False, True))
    facts = [
        ("model", f"{model.name} ({model.model_type}) from {model.source}"),
        ("decoder", f"{decoder.layers} layers of {decoder.hidden_size}, {decoder.dtype} ({plan.dtype_reason})"),
        ("settings", plan.pruning.source),
        ("pruning", f"at the input of layer {settings.layer}"),
        ("tokens", f"keep {settings.keep:#.2g} -> {plan.num_visual_kept} of {plan.num_visual} visual tokens"),
        ("cache", f"{full} -> {pruned} for one image and {TEXT_TOKENS} text tokens"),
        ("weights", human_bytes(plan.weight_bytes)),
        *(("note", note) for note in plan.notes),
    ]
    return table(facts)


def summarise(plan: ExportPlan) -> dict[str, Any]:
    """A plan as JSON values; sizes in bytes."""
    return {
        "model": vars(plan.model),
        "decoder": vars(plan.decoder),
        "dtype_reason": plan.dtype_reason,
        "pruning": plan.settings.to_dict(),
        "pruning_source": to_json(plan.pruning.source),
        "visual_tokens": plan.num_visual,
        "visual_tokens_kept": plan.num_visual_kept,
        "text_tokens": TEXT_TOKENS,
        "cache_bytes_unpruned": plan.cache_bytes(TEXT_TOKENS, pruned=False),
        "cache_bytes": plan.cache_bytes(TEXT_TOKENS),
        "weight_bytes": plan.weight_bytes,
        "notes": plan.notes,
    }
