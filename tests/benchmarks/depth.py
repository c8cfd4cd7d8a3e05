"""How far a right bundle is from its checkpoint, and whether a wrong one is caught, by the depth of its decoder.

    python -m tests.benchmarks.depth -o docs/benchmarks/depth.json

Random models of 8, 30 and 80 layers are exported in float32 and float16 and compared with their checkpoints. In the
second half weights have twice the usual size and amplify what they get. Then one weight tensor of the deepest, in
float32, is off by 1 %, at four depths.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from calibration.tiny_llava import HELDOUT
from iwp_export import api
from iwp_export.device.state import read_state
from iwp_export.parity.check import check_parity
from iwp_export.parity.checkpoint import CheckpointReference
from iwp_export.parity.figures import Parity, limits_of
from iwp_export.parity.verdict import gates
from iwp_export.pruning.settings import PruningSettings
from iwp_export.questions import read_questions
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.view.terminal import table
from tests.benchmarks import faulty
from tests.exporter.tiny import write_llava

LAYERS = (8, 30, 80)
GAINS = (1.0, 2.0)
"""Size of the weights, of 1 over the root of a matrix's inputs: with 1 each layer keeps the size of what it gets."""
KEEPS = (1.0, 0.3)
NEW_TOKENS = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 if every right bundle of usual weights passes, and of others in float32. Faults are shown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="JSON file")
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for layers in args.layers:
            for gain in GAINS:
                model = Path(folder) / f"{layers}-{gain:g}"
                write(model, layers, gain, args.seed)
                for dtype in ("float32", "float16"):
                    bundle = api.export(model, model.with_suffix(f".{dtype}"), PruningSettings(layer=2), dtype=dtype)
                    rows.append({"layers": layers, "gain": gain, **compare(bundle)})
                    print(rows[-1], flush=True)
        rows += faults(Path(folder), max(args.layers))
    shown = ("layers", "gain", "fault", "dtype", "rows", "logits", "of the limit", "failed")
    print(table([shown, *([row.get(name, "") for name in shown] for row in rows)]))
    if args.output is not None:
        words = shlex.join(sys.argv[1:] if arguments is None else arguments)
        found = {"command": f"python -m tests.benchmarks.depth {words}", "rows": rows}
        args.output.write_text(json.dumps({**found, "versions": dict(read_state().packages)}, indent=1) + "\n")
    right = [row for row in rows if "fault" not in row and (row["gain"] == 1 or row["dtype"] == "float32")]
    return int(any(row["failed"] for row in right))


def write(folder: Path, layers: int, gain: float, seed: int) -> None:
    """A random LLaVA whose matrices have values of the usual size times `gain`."""
    model = write_llava(folder, num_hidden_layers=layers)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ("language_model" in name and parameter.dim() == 2) or name.startswith("lm_head"):
                parameter.normal_(0, 1.0 if "embed" in name else gain * parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)


def compare(bundle: Path) -> dict[str, Any]:
    """A bundle's largest distances from its checkpoint, also as shares of their limits, and the failed gates."""
    pipeline = Pipeline.open(bundle, threads=1)
    questions = list(read_questions(HELDOUT))[:6:3]
    parity = check_parity(pipeline, CheckpointReference(pipeline.manifest), questions, KEEPS, NEW_TOKENS)
    limits = limits_of(parity.dtype, parity.layers)
    rows, logits = (max(_relative(parity, stage)) for stage in ("caches", "logits"))
    return {
        "dtype": parity.dtype,
        "rows": f"{rows:.1e}",
        "logits": f"{logits:.1e}",
        "of the limit": f"{rows / limits.rows:.2f}, {logits / limits.logits:.2f}",
        "failed": [gate.name for gate in gates(parity) if not gate.passed],
    }


def _relative(parity: Parity, stage: str) -> list[float]:
    stages = [figures for keep in parity.keeps for figures in keep.stages if figures.stage == stage]
    return [float("inf") if each.relative is None else each.relative for each in stages]


def faults(folder: Path, layers: int) -> list[dict[str, Any]]:
    """One weight tensor of a bundle off by 1 %, at several depths."""
    found = []
    right = folder / f"{layers}-{GAINS[0]:g}.float32"
    for layer in sorted({0, layers // 3, 2 * layers // 3, layers - 1}):
        for name in ("self_attn.q_proj", "mlp.down_proj"):
            path = faulty.copied(right, folder / "faulty.bundle")
            faulty.change_weights(path, f"layers.{layer}.{name}", lambda values: values * 1.01)
            fault = f"layers.{layer}.{name} by 1 %"
            found.append({"layers": layers, "gain": GAINS[0], "fault": fault, **compare(faulty.renewed(path))})
            print(found[-1], flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
