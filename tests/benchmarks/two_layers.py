"""A model of a 7B model's shapes with two layers: the exported bundle equals torch, whole and pruned.

    python -m calibration.random_checkpoint build/llava-2-layers --layers 2 --vision-layers 2
    python tests/benchmarks/two_layers.py build/llava-2-layers -o docs/benchmarks/two_layers.json

The first command's `--family llava_next` gives LLaVA-NeXT-7B's shapes in the place of LLaVA-1.5-7B's.

Exits with 1 if tokens, kept tokens or logits differ by more than rounding.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import iwp_export
from iwp_export import api
from iwp_export.backends.torch.session import TorchSession
from iwp_export.exporter.checkpoint import open_checkpoint
from iwp_export.pruning.settings import PruningSettings
from iwp_export.runtime.pipeline import Pipeline

SETTINGS = PruningSettings(layer=1, keep=0.3)
KEEPS = (1.0, 0.3, 0.111)
TOLERANCE = 1e-3
NEW_TOKENS = 4
IMAGE = (480, 640, 3)


def compare(checkpoint: str, folder: Path) -> dict[str, Any]:
    """Greedy tokens, kept tokens and logits of the bundle and of torch, in float32."""
    bundle = api.export(checkpoint, folder / "two.bundle", SETTINGS, dtype="float32")
    opened = open_checkpoint(checkpoint)
    session = TorchSession(opened.load_model(), opened.family, SETTINGS)
    pipeline = iwp_export.load(str(bundle))
    reference = Pipeline(pipeline.manifest, pipeline.processor, session)
    rng = np.random.default_rng(0)
    vision = pipeline.manifest.vision
    picture = pipeline.processor.image(rng.integers(0, 256, IMAGE, np.uint8))
    ids = np.concatenate([[1, 5, 6], [vision.image_token_id] * picture.num_tokens, rng.integers(5, 30000, 29)])
    rows = []
    for keep in KEEPS:
        options: dict[str, Any] = {"keep": keep, "max_new_tokens": NEW_TOKENS, "return_logits": True}
        a, b = (runner.generate_ids(ids, [picture], stop_at_eos=False, **options) for runner in (pipeline, reference))
        rows.append(
            {
                "keep": keep,
                "visual_tokens_kept": a.visual_tokens_kept,
                "same_kept_tokens": a.kept == b.kept,
                "same_tokens": a.token_ids == b.token_ids,
                "max_logits_difference": float(np.abs(np.array(a.logits) - np.array(b.logits)).max()),
                "largest_logit": float(np.abs(np.array(b.logits)).max()),
            }
        )
    return {"prompt_tokens": len(ids), "rows": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.checkpoint.parent) as folder:
        result = compare(str(args.checkpoint), Path(folder))
    result["command"] = "python tests/benchmarks/two_layers.py CHECKPOINT"
    result["versions"] = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "onnxruntime")}
    print(json.dumps(result, indent=2))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    good = all(
        row["same_kept_tokens"] and row["same_tokens"] and row["max_logits_difference"] <= TOLERANCE
        for row in result["rows"]
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
