"""`iwp-export estimate`: how fast a model would be on a device, and whether it fits; nothing is run."""

from __future__ import annotations

import argparse
import json

from iwp_export import api
from iwp_export.device.specs import DEVICES
from iwp_export.errors import BackendError
from iwp_export.models import ALIASES
from iwp_export.pruning.settings import DESCRIPTIONS

DESCRIPTION = (
    "Estimate speed and memory of a model on a device, with and without pruning, from its\n"
    "configuration alone: a roofline, whose assumptions are printed. Measure before you rely on it."
)
EXAMPLES = """\
  iwp-export estimate llava --device agx-orin                       float16 weights, 30 % of the visual tokens
  iwp-export estimate llava --device orin-nano --weights int4       does it fit into 8 GB?
  iwp-export estimate llava-next --device thor --keep 0.2 --new-tokens 16 --json
"""
SETTINGS = (("keep", float), ("layer", int))
"""The pruning settings on which speed depends."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    aliases = ", ".join(ALIASES)
    parser.add_argument("model", metavar="MODEL", help=f"a folder, a Hub id (owner/name) or one of: {aliases}")
    devices = ", ".join(DEVICES)
    parser.add_argument("--device", metavar="NAME", required=True, help=f"one of: {devices}")
    # the words are those of roofline.WEIGHTS; the library refuses others
    weights = "of the decoder's layers: fp16, int8 or int4 (default: fp16)"
    parser.add_argument("--weights", metavar="TYPE", default="fp16", help=weights)
    parser.add_argument("--images", metavar="N", type=int, default=1, help="of a typical size (default: 1)")
    parser.add_argument("--text-tokens", metavar="N", type=int, default=64, help="of the prompt (default: 64)")
    parser.add_argument("--new-tokens", metavar="N", type=int, default=64, help="of the answer (default: 64)")
    prune = parser.add_argument_group("pruning")
    prune.add_argument("--recipe", metavar="FILE", help="take keep and layer from a recipe; or paper")
    for name, kind in SETTINGS:
        unit, text = DESCRIPTIONS[name]
        prune.add_argument(f"--{name}", metavar=unit, type=kind, help=text)
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a Hub id")
    parser.add_argument("--json", action="store_true", help="print the estimate as JSON: seconds and bytes")


def execute(args: argparse.Namespace) -> None:
    """Estimate and print."""
    from iwp_export.estimator.words import assumptions, describe, verdicts

    given = {name: getattr(args, name) for name, _ in SETTINGS if getattr(args, name) is not None}
    try:
        estimate = api.estimate(
            args.model,
            args.device,
            given,
            recipe=args.recipe,
            weights=args.weights,
            text_tokens=args.text_tokens,
            images=args.images,
            new_tokens=args.new_tokens,
            revision=args.revision,
        )
    except ModuleNotFoundError as error:
        if str(error.name).startswith("iwp_export"):
            raise
        raise BackendError(f"estimating needs {error.name}; to get it: pip install 'iwp-export[export]'") from error
    if args.json:
        words = {"verdict": verdicts(estimate), "assumptions": assumptions(estimate)}
        print(json.dumps(estimate.to_dict() | words, indent=2))
    else:
        print(describe(estimate))
