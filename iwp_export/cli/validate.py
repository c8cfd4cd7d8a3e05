"""`iwp-export validate ARTEFACT`: is it what its checkpoint is, and does it keep the answers?"""

from __future__ import annotations

import argparse
from pathlib import Path

from iwp_export import api
from iwp_export.cli import reporting
from iwp_export.cli.calibrate import share
from iwp_export.errors import RequestError

DESCRIPTION = (
    "Compare an artefact with its checkpoint stage by stage, and its answers with the unpruned model's.\n"
    "Exit code 1: a gate failed; 2: it could not run. Against a recording or a bundle it needs no torch."
)
EXAMPLES = """\
  iwp-export validate tiny-llava.bundle                                 against its checkpoint, on its own questions
  iwp-export validate my.bundle --data questions.jsonl --max-drop 2% -o report.json report.html
  iwp-export validate my.bundle --data questions.jsonl --record golden.npz    where torch is
  iwp-export validate engine.plan --against golden.npz                        on the device, without torch
"""
EXIT_ERROR = 2
RULES = ("exact", "vqa", "anls", "yesno", "relaxed")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("artefact", metavar="ARTEFACT", type=Path, help="a bundle, or an engine (NAME.plan)")
    parity = parser.add_argument_group("parity")
    add = parity.add_argument
    add(
        "--against",
        metavar="WHAT",
        default="checkpoint",
        help="checkpoint, a bundle, an engine, a recording (NAME.npz), or none (default: checkpoint)",
    )
    add("--checkpoint", metavar="MODEL", help="where the checkpoint is (default: where the artefact says)")
    add("--record", metavar="NAME.npz", type=Path, help="also write what the checkpoint does, for --against elsewhere")
    add("--hidden-states", action="store_true", help="also compare the states between layers")
    add("--parity-samples", metavar="N", type=int, help="questions whose stages are compared (default: 8)")
    accuracy = parser.add_argument_group("accuracy")
    add = accuracy.add_argument
    add(
        "--data",
        metavar="FILE",
        type=Path,
        help="questions, JSON lines (default: what ships for the model)",
    )
    add("--limit", metavar="N", type=int, help="only the first N questions")
    add("--keep", metavar="RATIO", type=float, nargs="+", help="keep ratios beside 1 (default: the exported one)")
    add("--score", choices=RULES, default="exact", help="how answers are scored (default: exact)")
    add("--max-new-tokens", metavar="N", type=int, default=16, help="of an answer (default: 16)")
    add(
        "--max-drop",
        metavar="SHARE",
        type=share,
        help="gate: share of the unpruned score that may go: 1%% or 0.01",
    )
    add("--min-agreement", metavar="SHARE", type=share, help="gate: share of answers that must be the unpruned model's")
    more = parser.add_argument_group("more")
    add = more.add_argument
    add("--monitors", action="store_true", help="also show where the model reads the image (needs the checkpoint)")
    add("--provider", default="cpu", help="execution provider of a bundle: cpu, cuda, ... (default: cpu)")
    add("--threads", metavar="N", type=int, help="threads of one operator (default: the libraries' choice)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where torch runs the checkpoint (default: cpu)")
    kinds, text = ("float32", "float16", "bfloat16"), "element type of the checkpoint in torch (default: float32)"
    add("--checkpoint-dtype", choices=kinds, default="float32", help=text)
    reporting.add_arguments(parser)


def execute(args: argparse.Namespace) -> int:
    """Validate, print and write; 1 if a gate failed."""
    if args.artefact.suffix == ".plan" and args.provider != "cpu":
        raise RequestError("an engine runs on the TensorRT that built it: --provider is for bundles")
    reporting.check(args, args.data, args.record, Path(args.against))
    given = {"parity_samples": args.parity_samples} if args.parity_samples is not None else {}
    report = api.validate(
        args.artefact,
        provider=args.provider,
        threads=args.threads,
        command=reporting.command_line(),
        force=args.force,
        against=args.against,
        checkpoint=args.checkpoint,
        device=args.device,
        dtype=args.checkpoint_dtype,
        record=args.record,
        hidden_states=args.hidden_states,
        data=args.data,
        limit=args.limit,
        keeps=tuple(args.keep or ()),
        score=args.score,
        max_new_tokens=args.max_new_tokens,
        max_drop=args.max_drop,
        min_agreement=args.min_agreement,
        monitors=args.monitors,
        strict=args.strict,
        **given,
    )
    return reporting.finish(report, args)
