"""Kills exports of tiny-llava at random moments; none may leave a bundle that opens and is not whole.

python tests/benchmarks/kill_export.py --times 20 -o docs/benchmarks/kill_export.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from iwp_export.bundle.store import Bundle
from iwp_export.errors import BundleError


def export(output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "iwp_export.cli.main", "tiny-llava", "-o", str(output)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def opens(folder: Path) -> bool:
    try:
        Bundle.open(folder, verify="full")
    except BundleError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        export(Path(folder) / "whole.bundle").wait()
        whole = time.perf_counter() - start
        assert opens(Path(folder) / "whole.bundle"), "an export that was left alone must give a bundle"
        for index in range(args.times):
            # Half of the moments lie in the last quarter, where files are written, hashed and moved.
            moment = whole * (rng.uniform(0.75, 1.02) if index % 2 else rng.uniform(0.02, 0.75))
            target = Path(folder) / f"{index}.bundle"
            process = export(target)
            time.sleep(moment)
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            left = [path.name for path in Path(folder).iterdir() if path.name != "whole.bundle"]
            rows.append(
                {
                    "seconds": round(moment, 2),
                    "killed": code == -signal.SIGKILL,
                    "bundle_at_target": target.exists(),
                    "any_other_opens": any(opens(Path(folder) / name) for name in left if name != target.name),
                    "target_opens": target.exists() and opens(target),
                }
            )
            for name in left:
                subprocess.run(["rm", "-rf", str(Path(folder) / name)], check=True)
    bad = [row for row in rows if row["any_other_opens"] or (row["bundle_at_target"] and not row["target_opens"])]
    result = {
        "command": f"python tests/benchmarks/kill_export.py --times {args.times} --seed {args.seed}",
        "seconds_of_a_whole_export": round(whole, 2),
        "killed": sum(row["killed"] for row in rows),
        "killed_before_the_move": sum(row["killed"] and not row["bundle_at_target"] for row in rows),
        "half_written_bundles": len(bad),
        "runs": rows,
    }
    print(json.dumps(result, indent=2))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
