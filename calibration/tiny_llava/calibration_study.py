"""How good calibrate's choice is, on readers that differ in their seed alone.

    python -m calibration.tiny_llava.train -o READER --reader-seed 14 --tower-of iwp_export/assets/tiny_llava
    python -m calibration.tiny_llava.calibration_study tiny-llava READER ... -o docs/benchmarks/calibration_readers.json

For each reader and keep ratio: calibrate on the samples that ship with the package (training split), then measure on
held-out questions, whose digits and photos are others: calibrate's choice, the paper's settings, every candidate (the
best of them is the best in hindsight), random choice, the last token's attention, and DivPrune's rule. With
`--wrong-data`, calibrate also on photos without digits and on noise.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from calibration.studies.compare import right_shares
from calibration.studies.rivals import methods
from calibration.studies.seen import RivalSession
from calibration.tiny_llava import HELDOUT
from calibration.tiny_llava.scenes import build_pools
from iwp_export.bundle.recipe import Recipe
from iwp_export.calibrator.calibration import Calibration
from iwp_export.calibrator.plan import plan_calibration
from iwp_export.calibrator.search import controls_of
from iwp_export.device.machine import package_versions
from iwp_export.exporter.live import limit_threads, open_live
from iwp_export.pruning.settings import PruningSettings
from iwp_export.questions import Question, read_questions
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.scorer import Scorer
from iwp_export.settings import CalibrationSettings

KEEPS = (0.222, 0.111)
SAMPLES = Path("iwp_export/assets/tiny_llava_samples/questions.jsonl")
RANDOM_SEEDS = (0, 1, 2)
NOWHERE = Path(tempfile.gettempdir()) / "none.json"
"""A recipe that is not written."""


class Reader:
    """A checkpoint in torch, and how it answers held-out questions with settings or another method."""

    def __init__(self, folder: str, questions: Sequence[Question]) -> None:
        plan = plan_calibration(folder, NOWHERE, CalibrationSettings(SAMPLES), force=True)
        self.name, self.folder, self.questions = Path(folder).name, folder, questions
        self.session, self.manifest, self.processor = open_live(plan.export, "float32")
        self.scorer = Scorer(self.session, self.manifest, self.processor, plan.candidate_layers)

    def accuracies(self, settings: Sequence[PruningSettings]) -> dict[PruningSettings, float]:
        """Share of right answers of each setting, in per cent.

        An answer of tiny-llava is one word, which is one token: the first one decides, and no generation is needed.
        """
        right = dict.fromkeys(settings, 0)
        for question in self.questions:
            prepared = self.scorer.prepare(question)
            for each in right:
                word = self.processor.decode([int(self.scorer.logits(prepared, each)[0].argmax())])
                right[each] += word.strip() == question.answer
        return {each: round(100 * count / len(self.questions), 2) for each, count in right.items()}

    def rival(self, name: str, settings: PruningSettings, seed: int = 0) -> float:
        """Share of right answers of another method at the settings' layer and keep ratio, in per cent."""
        session = RivalSession(self.session, methods(settings, seed)[name])
        pipeline = Pipeline(replace(self.manifest, pruning=settings), self.processor, session)
        return round(100 * right_shares(pipeline, self.questions, settings.keep)["all"], 2)


def calibrated(folder: str, keep: float, data: Path = SAMPLES) -> tuple[Recipe, Calibration, float]:
    """A calibration on `data`; nothing is written."""
    start = time.perf_counter()
    calibration = Calibration(plan_calibration(folder, NOWHERE, CalibrationSettings(data, keep=[keep]), force=True))
    return calibration.run(), calibration, time.perf_counter() - start


def study(reader: Reader, keep: float) -> dict[str, Any]:
    """One reader at one keep ratio; accuracies in per cent."""
    recipe, calibration, seconds = calibrated(reader.folder, keep)
    default, chosen = calibration.search.default, recipe.settings
    tried = list(dict.fromkeys([*calibration.search.candidates, default]))
    controls = controls_of(chosen)
    last = default.with_changes(importance="last_attention")
    whole = replace(default, keep=1.0)
    found = reader.accuracies([*tried, *controls, last, whole])
    best = max(tried, key=lambda settings: found[settings])
    draws = [reader.rival("random", default, seed) for seed in RANDOM_SEEDS]
    return {
        "reader": reader.name,
        "keep": keep,
        "unpruned": found[whole],
        "default": found[default],
        "pick": found[chosen],
        "best in hindsight": found[best],
        "points below the best": round(found[best] - found[chosen], 2),
        "best in hindsight at the pick's layer": max(found[s] for s in tried if s.layer == chosen.layer),
        "median of all candidates": float(np.median([found[settings] for settings in tried])),
        "random, layer of the default": round(float(np.mean(draws)), 2),
        "random and grid, layer of the pick": [found[control] for control in controls],
        "last attention, layer of the default": found[last],
        "DivPrune's rule, layer of the default": reader.rival("divprune", default),
        "pick is": chosen.to_dict(),
        "best is": best.to_dict(),
        "verdict": recipe.verdict,
        "runs": recipe.search.runs,
        "runs of all": recipe.search.runs_of_all,
        "share of the runs": round(recipe.search.runs / recipe.search.runs_of_all, 3),
        "seconds of the calibration": round(seconds, 1),
        "all candidates": [{"settings": s.to_dict(), "accuracy": found[s]} for s in tried],
    }


def wrong_data(reader: Reader, keep: float, folder: Path) -> list[dict[str, Any]]:
    """What calibrations on photos without digits and on noise choose, and whether they warn."""
    rows = []
    for name in ("photos without digits", "noise"):
        recipe, _, _ = calibrated(reader.folder, keep, write_wrong(name, folder / name.replace(" ", "_")))
        pick = reader.accuracies([recipe.settings])[recipe.settings]
        warns = [line for line in recipe.verdict if line.startswith("Doubtful")]
        rows.append(
            {
                "reader": reader.name,
                "keep": keep,
                "data": name,
                "pick": pick,
                "pick is": recipe.settings.to_dict(),
                "warns": bool(warns),
                "verdict": recipe.verdict,
            }
        )
    return rows


def write_wrong(name: str, folder: Path) -> Path:
    """The samples' questions about images that show no digit."""
    folder.mkdir(parents=True)
    backgrounds = build_pools("train", 3001, variants=1, backgrounds=400).backgrounds
    rng = np.random.default_rng(3002)
    lines = []
    for number, question in enumerate(read_questions(SAMPLES)):
        pixels = rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)
        if name != "noise":
            pixels = backgrounds[rng.integers(len(backgrounds))]
        Image.fromarray(np.asarray(pixels, np.uint8)).save(folder / f"{number:03d}.png")
        lines.append(json.dumps({"image": f"{number:03d}.png", "prompt": question.prompt}) + "\n")
    (folder / "questions.jsonl").write_text("".join(lines))
    return folder / "questions.jsonl"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="+", help="checkpoints: tiny-llava, or folders")
    parser.add_argument("--keep", type=float, nargs="+", default=KEEPS)
    parser.add_argument("--limit", type=int, default=300, help="held-out questions (default: %(default)s)")
    parser.add_argument("--wrong-data", action="store_true", help="also calibrate on images without digits")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    limit_threads(args.threads)
    questions = list(read_questions(HELDOUT))[: args.limit]
    command = f"python -m calibration.tiny_llava.calibration_study {shlex.join(sys.argv[1:])}"
    report: dict[str, Any] = {
        "command": command,
        "held-out questions": len(questions),
        "versions": package_versions(),
        "rows": [],
        "wrong data": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in args.readers:
            reader = Reader(name, questions)
            for keep in args.keep:
                report["rows"].append(study(reader, keep))
                if args.wrong_data:
                    report["wrong data"] += wrong_data(reader, keep, Path(folder) / f"{reader.name}-{keep}")
                args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
                shown = {k: v for k, v in report["rows"][-1].items() if k not in ("all candidates", "verdict")}
                print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
