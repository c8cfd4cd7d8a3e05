"""How well an artefact, or each of several, answers questions at each keep ratio. Needs no torch.

python -m iwp_export.accuracy tiny-llava.bundle --keep 0.3 0.11
python -m iwp_export.accuracy mine.bundle paper.bundle random.bundle --data questions.jsonl --score anls
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iwp_export.accuracy.figures import Accuracy
from iwp_export.accuracy.measure import measure_accuracy
from iwp_export.accuracy.scoring import RULES, find_rule
from iwp_export.accuracy.words import describe, keep_rows, warnings
from iwp_export.bundle.schema import to_json
from iwp_export.device.machine import package_versions
from iwp_export.pruning.settings import check_keep
from iwp_export.questions import DataSet, open_data
from iwp_export.reports import entry
from iwp_export.tables import table

KEEPS = (1.0, 0.3, 0.11)


@dataclass(frozen=True)
class Artefact:
    """What was measured of one artefact."""

    path: Path
    provider: str
    dtype: str
    accuracy: Accuracy


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = entry.make_parser(__doc__, several=True, needs_data=False)
    parser.add_argument("--keep", type=float, nargs="+", default=KEEPS, help="keep ratios (default: 1.0 0.3 0.11)")
    parser.add_argument(
        "--score", choices=tuple(RULES), default="exact", help="how answers are scored (default: exact)"
    )
    return entry.run(parser, _execute, "accuracy", arguments)


def _execute(args: argparse.Namespace) -> int:
    for keep in args.keep:
        check_keep(keep)
    entry.check_artefacts(args.artefacts)
    data = open_data(args.data, "", args.limit) if args.data else None
    if data is not None:
        find_rule(args.score).check(data.questions)
    found = [_measure(args, path, data) for path in args.artefacts]  # one in memory at a time
    if len(found) > 1:
        print(f"accuracy on {found[0].accuracy.questions} questions of {found[0].accuracy.data}")
    print(compare(found) if len(found) > 1 else describe(found[0].accuracy))
    reports = [
        {"artefact": str(each.path), "provider": each.provider, "dtype": each.dtype, "accuracy": to_json(each.accuracy)}
        for each in found
    ]
    body = {"artefacts": reports} if len(reports) > 1 else reports[0]
    entry.write_report({"command": args.command, **body, "versions": package_versions()}, args.output)
    return 0


def _measure(args: argparse.Namespace, path: Path, data: DataSet | None) -> Artefact:
    pipeline = entry.open_pipeline(args, path)
    data = data or open_data(None, pipeline.manifest.model.name, args.limit)
    found = measure_accuracy(pipeline, data.questions, args.keep, args.score, args.max_new_tokens, data.name)
    return Artefact(path, pipeline.provider, pipeline.manifest.decoder.dtype, replace(found, examples=()))


def compare(artefacts: Sequence[Artefact]) -> str:
    """A table with a row for each artefact and keep ratio, under what makes their figures doubtful."""
    rows: list[list[str]] = []
    for artefact, name in zip(artefacts, _names([artefact.path for artefact in artefacts]), strict=True):
        head, *body = keep_rows(artefact.accuracy)
        rows += [[name, *row] for row in body] if rows else [["artefact", *head], *([name, *row] for row in body)]
    doubts = dict.fromkeys(text for artefact in artefacts for text in warnings(artefact.accuracy))
    return "\n".join([*doubts, table(rows)])


def _names(paths: Sequence[Path]) -> list[str]:
    """The artefacts' names, or where two share one, their paths."""
    names = [path.absolute().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


if __name__ == "__main__":
    sys.exit(main())
