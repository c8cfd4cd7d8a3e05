"""Shows where a model reads its image, what its layers attend to, and where pruning begins to cost.

python -m iwp_export.monitors tiny-llava.bundle -o monitors.json --picture monitors.svg

Needs torch and the artefact's checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from iwp_export.bundle.schema import to_json
from iwp_export.device.machine import package_versions
from iwp_export.errors import BackendError
from iwp_export.monitors.knee import RULES, warnings
from iwp_export.monitors.page import picture
from iwp_export.monitors.words import describe, verdict
from iwp_export.pruning.settings import check_keep
from iwp_export.questions import open_data
from iwp_export.reports import entry
from iwp_export.view.draw import check_installed
from iwp_export.view.svg import write_picture


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = entry.make_parser(__doc__, needs_data=False)
    add = parser.add_argument
    add("--checkpoint", help="where the checkpoint is (default: where the artefact says)")
    add("--keep", type=float, nargs="+", metavar="RATIO", help="budgets of the curve (default: 0.5 to 0.05)")
    add("--picture", metavar="FILE", type=Path, help="SVG file for the charts")
    return entry.run(parser, _execute, "monitors", arguments)


def _execute(args: argparse.Namespace) -> int:
    for keep in args.keep or ():
        check_keep(keep)
    if args.picture:
        check_installed()
    pipeline = entry.open_pipeline(args)
    data = open_data(args.data, pipeline.manifest.model.name, args.limit)
    try:  # torch takes seconds to load: not for --help or a mistake
        from iwp_export.exporter.loading import limit_threads
        from iwp_export.monitors.measure import KEEPS, measure_monitors
        from iwp_export.scorer import Reference
    except ModuleNotFoundError as error:
        need = "monitors need torch and the checkpoint; to get it: pip install 'iwp-export[export]'"
        raise BackendError(need) from error

    if args.threads:
        limit_threads(args.threads)
    reference = Reference.of(pipeline.manifest, args.checkpoint)
    found = measure_monitors(pipeline, reference, data, keeps=args.keep or KEEPS, max_new_tokens=args.max_new_tokens)
    print(describe(found))
    report = {
        "command": args.command,
        "artefact": str(args.artefact),
        "verdict": verdict(found),
        "warnings": warnings(found),
        "rules": RULES,
        "monitors": to_json(found),
        "versions": package_versions(),
    }
    entry.write_report(report, args.output)
    if args.picture:
        write_picture(args.picture, picture(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
