"""Deliberate faults against the gates of parity, and right artefacts, which must pass.

    python -m tests.benchmarks.faults -o docs/benchmarks/faults.json

Every fault is made in an artefact of tiny-llava or in what runs it, and validated against the checkpoint on this CPU.
Then single weight values are changed, by ever smaller amounts, to find what numbers can show; the hashes find any
change. At last right artefacts are validated, each time on other questions and keep ratios.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from calibration.tiny_llava import HELDOUT
from iwp_export import api
from iwp_export.device.state import read_state
from iwp_export.parity.checkpoint import CheckpointReference
from iwp_export.pruning.settings import PruningSettings
from iwp_export.questions import Question, read_questions
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.view.terminal import table
from tests.benchmarks import faulty
from tests.benchmarks.fault_list import FAULTS, Fault
from tests.benchmarks.fault_shop import MARGINS, PASSED, Outcome, Workshop

RUNS = 50
VALUES = 24
LARGEST, SMALLEST = 1.0, 1e-6
"""Changes of a weight value, relative to the root mean square of its tensor."""
SAMPLES = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 if every fault fails its gate and every right artefact passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="JSON file")
    parser.add_argument("--runs", type=int, default=RUNS, help="of each right artefact (default: %(default)s)")
    parser.add_argument("--values", type=int, default=VALUES, help="weight values to change (default: %(default)s)")
    args = parser.parse_args(arguments)
    questions = list(read_questions(HELDOUT))
    with tempfile.TemporaryDirectory() as folder:
        bundle = api.export("tiny-llava", Path(folder) / "right.bundle", PruningSettings(), dtype="float32")
        shop = Workshop(Path(folder), bundle, questions[:12:6], _pairs(questions[:12:6]))
        rows = [_row(shop, fault) for fault in FAULTS]
        print(table([["", "fault", "exit", "caught by", "measured"], *(_cells(row) for row in rows)]), flush=True)
        values = {dtype: single_values(shop, dtype, args.values) for dtype in ("float32", "float16")}
        right = {name: right_runs(name, shop, questions, args.runs) for name in ("float32", "float16", "bfloat16")}
    for dtype, found in values.items():
        print(f"single weight values, {dtype}: {found['summary']}")
    for name, found in right.items():
        passed = f"{found['passed']} of {found['runs']} pass"
        shares = ", ".join(f"{kind} {share:.2g}" for kind, share in found["largest as a share of its limit"].items())
        print(f"right artefacts, {name}: {passed}; largest as a share of its limit: {shares}")
    report = {
        "command": f"python -m tests.benchmarks.faults {shlex.join(sys.argv[1:] if arguments is None else arguments)}",
        "faults": rows,
        "single weight values": values,
        "right artefacts": right,
        "versions": dict(read_state().packages),
    }
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    caught = all(row["caught"] for row in rows)
    return 0 if caught and all(found["passed"] == found["runs"] for found in right.values()) else 1


def _pairs(questions: Sequence[Question]) -> list[Question]:
    """Each question with its image and the next one's."""
    images = [question.images[0] for question in questions]
    return [
        replace(question, images=(images[i], images[(i + 1) % len(images)])) for i, question in enumerate(questions)
    ]


def _row(shop: Workshop, fault: Fault) -> dict[str, Any]:
    start = time.perf_counter()
    outcome = fault.judge(shop)
    gate = next((gate for gate in outcome.gates if gate.name == fault.gate), None)
    return {
        "fault": fault.name,
        "caught": fault.caught(outcome),
        "exit": outcome.code,
        "gate": fault.gate or "refused",
        "measured": _plain(shop, outcome.error if gate is None else gate.measured),
        "allowed": "" if gate is None else gate.limit,
        "where": "" if gate is None else _plain(shop, gate.where),
        "failed": outcome.failed,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _plain(shop: Workshop, text: str) -> str:
    return text.replace(f"{shop.folder}/", "")


def _cells(row: dict[str, Any]) -> list[Any]:
    mark = "ok" if row["caught"] else "MISSED"
    return [mark, row["fault"], row["exit"], ", ".join(row["failed"]) or row["gate"], row["measured"][:60]]


def single_values(shop: Workshop, dtype: str, count: int) -> dict[str, Any]:
    """From what size on a change of one weight value is found by numbers, for values drawn from all matrices."""
    bundle = shop.half if dtype == "float16" else shop.bundle
    rng = np.random.default_rng(0)
    tensors = [(graph, name) for graph in ("decoder", "vision") for name in _matrices(bundle, graph)]
    found: list[tuple[str, str, float | None]] = []
    for _ in range(count):
        graph, name = tensors[rng.integers(len(tensors))]
        found.append((graph, name, _smallest(shop, bundle, graph, name, rng.random(2))))
    sizes = sorted(size for *_, size in found if size is not None)
    unseen = len(found) - len(sizes)
    summary = f"found from {_share(sizes, 0)} to {_share(sizes, 1)} of the tensor's root mean square on, median "
    summary += f"{_share(sizes, 0.5)}; {unseen} of {len(found)} not even at {LARGEST:g}"
    return {
        "summary": summary,
        "relative to": "root mean square of the tensor",
        "values": [dict(zip(("graph", "tensor", "smallest"), each, strict=True)) for each in found],
    }


def _share(sizes: Sequence[float], place: float) -> str:
    return f"{sizes[round(place * (len(sizes) - 1))]:.1e}" if sizes else "none"


def _smallest(shop: Workshop, bundle: Path, graph: str, name: str, place: Any) -> float | None:
    """The smallest power of the root of 10 from which on a change is found; None if the largest is not."""
    smallest, size = None, LARGEST
    while size >= SMALLEST:
        path = faulty.copied(bundle, shop.folder / "faulty.bundle")

        def change(values: Any, size: float = size) -> Any:
            row, column = (int(share * length) for share, length in zip(place, values.shape, strict=True))
            values[row, column] += size * np.sqrt(np.square(values.astype(np.float64)).mean())
            return values

        faulty.change_weights(path, name, change, graph)
        if shop.judge(faulty.renewed(path), against=shop.recording).code == PASSED:
            return smallest
        smallest, size = size, size / 10**0.5
    return smallest


def _matrices(bundle: Path, graph: str) -> Iterator[str]:
    model = onnx.load(str(bundle / f"{graph}.onnx"), load_external_data=False)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2 and tensor.external_data and tensor.data_type in faulty.NUMPY:
            yield tensor.name


def right_runs(name: str, shop: Workshop, questions: Sequence[Question], runs: int) -> dict[str, Any]:
    """Right artefacts, each time with other questions and another keep ratio beside 1."""
    artefact = _right(name, shop)
    rng = np.random.default_rng(1)
    codes, failed = [], []
    margins = dict.fromkeys(MARGINS, 0.0)
    for number in range(runs):
        chosen = [questions[i] for i in rng.permutation(len(questions))[:SAMPLES]]
        asked = chosen if number % 5 else _pairs(chosen)
        keep = round(float(rng.uniform(0.05, 0.9)), 3)
        once = replace(shop, questions=asked, keeps=(1.0, keep), new_tokens=8)
        outcome: Outcome = once.judge(artefact)
        codes.append(outcome.code)
        failed += [f"run {number}: {', '.join(outcome.failed) or outcome.error}"] if outcome.code else []
        margins = {kind: max(margins[kind], found) for kind, found in outcome.margins.items()}
    return {
        "runs": runs,
        "passed": codes.count(PASSED),
        "samples of a run": SAMPLES,
        "largest as a share of its limit": margins,
        "failed": failed,
    }


def _right(name: str, shop: Workshop) -> Pipeline:
    """A bundle in ONNX Runtime; in bfloat16, which its CPU provider lacks, the torch form of the decoder."""
    if name == "float32":
        return shop.right
    if name == "float16":
        return Pipeline.open(shop.half, threads=1)
    manifest = shop.right.manifest
    manifest = replace(manifest, decoder=replace(manifest.decoder, dtype=name))
    live = CheckpointReference(manifest, dtype="bfloat16")
    return Pipeline.of(manifest, shop.bundle / "processor", live.session)


if __name__ == "__main__":
    sys.exit(main())
