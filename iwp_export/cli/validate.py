"""`iwp-export validate ARTEFACT`: is it what its checkpoint is, and does it keep the answers?"""

from __future__ import annotations

import argparse
from pathlib import Path

from iwp_export.cli import flags, reporting
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
    parser.add_argument("artefact", metavar="ARTEFACT", type=Path, help="a bundle, or an engine (NAME.plan)")
    flags.add(parser, ValidationSettings)
    reporting.add_arguments(parser)


def execute(args: argparse.Namespace) -> int:
    """Validate, print and write; 1 if a gate failed."""
    settings = flags.read(args, ValidationSettings)
    reporting.check(args, settings.data, settings.record, Path(settings.against))
    from iwp_export.reports.validation import validate

    return reporting.finish(validate(args.artefact, settings, reporting.command_line(), args.force), args)
