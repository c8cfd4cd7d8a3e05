"""`iwp-export bench ARTEFACT`: how long answers take, pruned and unpruned, and whether that is good enough."""

from __future__ import annotations

import argparse
from pathlib import Path

from iwp_export.cli import flags, report
from iwp_export.settings import BenchSettings

DESCRIPTION = (
    "Measure how long an artefact takes to answer, phase by phase: pruned and unpruned requests in turn,\n"
    "with the ratio's interval. Exit code 1: a gate failed; 2: it could not run. Needs no torch."
)
EXAMPLES = """\
  iwp-export bench tiny-llava.bundle                                on its own samples
  iwp-export bench my.plan --image a.jpg --prompt "What is it?" --new-tokens 16
  iwp-export bench my.bundle --provider cuda --fail-if-slower --max-ttft-ms 200 -o bench.html
"""
EXIT_ERROR = 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("artefact", metavar="ARTEFACT", type=Path, help="a bundle, or an engine (NAME.plan)")
    asked = parser.add_argument_group("what is asked")
    text = "an image; repeat for several"
    asked.add_argument("--image", dest="images", metavar="FILE", type=Path, action="append", default=[], help=text)
    flags.add(parser, BenchSettings)
    report.add_outputs(parser)


def execute(args: argparse.Namespace) -> int:
    """Measure, print and write; 1 if a gate failed."""
    settings = flags.read(args, BenchSettings)
    report.check_reports(args.output, args.force, (args.artefact, settings.data, *args.images))
    from iwp_export.reports.measure import benchmark

    return report.finish([benchmark(args.artefact, settings, args.images, report.command_line())], args)
