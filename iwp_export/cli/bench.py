"""`iwp-export bench ARTEFACT`: how long answers take, pruned and unpruned, and whether that is good enough."""

from __future__ import annotations

import argparse
from pathlib import Path

from iwp_export import api
from iwp_export.cli import reporting

DESCRIPTION = (
    "Measure how long an artefact takes to answer, phase by phase: pruned and unpruned requests in turn,\n"
    "with the ratio's interval. Exit code 1: a gate failed; 2: it could not run. Needs no torch."
)
EXAMPLES = """\
  iwp-export bench tiny-llava.bundle                                on its own samples
  iwp-export bench my.plan --image a.jpg --prompt "What is it?" --new-tokens 16 --hz 5
  iwp-export bench my.bundle --provider cuda --fail-if-slower --max-ttft-ms 200 -o bench.html
"""
EXIT_ERROR = 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("artefact", metavar="ARTEFACT", type=Path, help="a bundle, or an engine (NAME.plan)")
    asked = parser.add_argument_group("what is asked")
    add = asked.add_argument
    add("--image", metavar="FILE", type=Path, action="append", default=[], help="an image; repeat for several")
    add("--prompt", metavar="TEXT", help="the question")
    add("--data", metavar="FILE", type=Path, help="questions, one JSON object a line, asked in turn")
    add("--limit", metavar="N", type=int, help="the first N questions of the file (default: 7)")
    add("--new-tokens", metavar="N", type=int, default=32, help="length of every answer (default: 32)")
    add("--keep", metavar="RATIO", type=float, help="fraction of visual tokens that stays (default: the exported one)")
    measure = parser.add_argument_group("how it is measured")
    add = measure.add_argument
    add("--pairs", metavar="N", type=int, help="pruned and unpruned runs (default: as many as take 30 s, 40 to 200)")
    add("--warmup", metavar="N", type=int, default=3, help="runs of each side that do not count (default: 3)")
    add("--hz", metavar="RATE", type=float, help="also a control loop: requests that start RATE times a second")
    add("--provider", default="cpu", help="execution provider of a bundle: cpu, cuda, ... (default: cpu)")
    add("--threads", metavar="N", type=int, help="threads of one operator (default: the provider's choice)")
    gates = parser.add_argument_group("gates, of the pruned runs; that tokens are dropped is always one")
    add = gates.add_argument
    add(
        "--fail-if-slower",
        metavar="PHASE",
        nargs="?",
        const="end-to-end",
        choices=("end-to-end", "prefill"),
        help="unless pruning is shown to be faster: lower end of the ratio above 1, end-to-end (default) or prefill",
    )
    add("--max-ttft-ms", metavar="MS", type=float, help="90th percentile of the time to first token at most")
    add("--max-p99-ms", metavar="MS", type=float, help="99th percentile end to end at most")
    reporting.add_arguments(parser)


def execute(args: argparse.Namespace) -> int:
    """Measure, print and write; 1 if a gate failed."""
    reporting.check(args, args.data, *args.image)
    slower = args.fail_if_slower
    report = api.bench(
        args.artefact,
        images=args.image,
        prompt=args.prompt,
        data=args.data,
        limit=args.limit,
        provider=args.provider,
        threads=args.threads,
        fail_if_slower=slower and slower.replace("-", "_"),
        max_ttft_ms=args.max_ttft_ms,
        max_p99_ms=args.max_p99_ms,
        strict=args.strict,
        command=reporting.command_line(),
        keep=args.keep,
        new_tokens=args.new_tokens,
        pairs=args.pairs,
        warmup=args.warmup,
        hz=args.hz,
    )
    return reporting.finish(report, args)
