"""`iwp-export estimate`: whether a model fits on a device and how fast it decodes there; nothing is run."""

from __future__ import annotations

import argparse
import json

from iwp_export import api
from iwp_export.cli import flags
from iwp_export.device.specs import DEVICES
from iwp_export.models import ALIASES
from iwp_export.pruning.settings import PruningSettings, names_of_settings
from iwp_export.view.terminal import render

DESCRIPTION = (
    "Estimate memory and decoding speed of a model on a device, with and without pruning, from its\n"
    "configuration alone. What is assumed is printed. Measure before you rely on it."
)
EXAMPLES = """\
  iwp-export estimate llava --device agx-orin                       float16 weights, 30 % of the visual tokens
  iwp-export estimate llava --device orin-nano --weights int4       does it fit into 8 GB?
  iwp-export estimate llava-next --device thor --keep 0.2 --new-tokens 16 --json
"""
NEEDS = ("estimating", "export")
SETTINGS = {"keep", "layer"}
"""The pruning settings that an estimate depends on."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    aliases = ", ".join(ALIASES)
    parser.add_argument("model", metavar="MODEL", help=f"a folder, a Hub id (owner/name) or one of: {aliases}")
    parser.add_argument("--device", metavar="NAME", required=True, help=f"one of: {', '.join(DEVICES)}")
    # the words are those of estimate.WEIGHTS; the library refuses others
    weights = "of the decoder's layers: fp16, int8 or int4 (default: fp16)"
    parser.add_argument("--weights", metavar="TYPE", default="fp16", help=weights)
    parser.add_argument("--images", metavar="N", type=int, default=1, help="of a typical size (default: 1)")
    parser.add_argument("--text-tokens", metavar="N", type=int, default=64, help="of the prompt (default: 64)")
    parser.add_argument("--new-tokens", metavar="N", type=int, default=64, help="of the answer (default: 64)")
    prune = parser.add_argument_group("pruning", "the defaults are those of the paper, where no recipe says otherwise")
    prune.add_argument("--recipe", metavar="FILE", help="take keep and layer from a recipe; or paper")
    flags.add(parser, PruningSettings, skip=set(names_of_settings()) - SETTINGS)
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a Hub id")
    parser.add_argument("--json", action="store_true", help="print the estimate as JSON: bytes, operations, tokens/s")


def execute(args: argparse.Namespace) -> None:
    """Estimate and print."""
    names = ("recipe", "weights", "text_tokens", "images", "new_tokens", "revision")
    given = flags.given(args, PruningSettings)
    estimate = api.estimate(args.model, args.device, given, **{name: getattr(args, name) for name in names})
    from iwp_export.estimator.estimate import view

    shown = view(estimate)
    words = {"verdict": shown.sentences, "assumptions": shown.notes}
    print(json.dumps(estimate.to_dict() | words, indent=2) if args.json else render([shown]))
