"""`iwp-export validate ARTEFACT`: is it what its checkpoint is, and does it keep the answers?"""

from __future__ import annotations

import argparse
from pathlib import Path

from iwp_export.cli import flags, report
from iwp_export.settings import ValidationSettings

DESCRIPTION = (
    "Compare an artefact with its checkpoint stage by stage, and its answers with the unpruned model's.\n"
    "Several artefacts: their answers to the same questions in one table. Exit code 1: a gate failed;\n"
    "2: it could not run. Against a recording or a bundle it needs no torch."
)
EXAMPLES = """\
  iwp-export validate tiny-llava.bundle                                 against its checkpoint, on its own questions
  iwp-export validate my.bundle --data questions.jsonl --max-drop 2% -o report.json report.html
  iwp-export validate my.bundle --data questions.jsonl --record golden.npz    where torch is
  iwp-export validate engine.plan --against golden.npz                        on the device, without torch
  iwp-export validate mine.bundle paper.bundle random.bundle --keep 0.3 0.11  which keeps more answers
"""
EXIT_ERROR = 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    text = "a bundle, or an engine (NAME.plan); several are compared"
    parser.add_argument("artefacts", metavar="ARTEFACT", type=Path, nargs="+", help=text)
    flags.add(parser, ValidationSettings)
    report.add_outputs(parser)


def execute(args: argparse.Namespace) -> int:
    """Validate, print and write; 1 if a gate failed."""
    settings = flags.read(args, ValidationSettings)
    inputs = (*args.artefacts, settings.data, settings.against, settings.checkpoint)
    report.check_reports(args.output, args.force, inputs)
    from iwp_export.reports.measure import validate, validate_each

    command = report.command_line()
    if len(args.artefacts) > 1:
        return report.finish(validate_each(args.artefacts, settings, command), args)
    return report.finish([validate(args.artefacts[0], settings, command, args.force)], args)
