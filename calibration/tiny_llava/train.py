"""Trains tiny-llava: `python -m calibration.tiny_llava.train -o iwp_export/assets/tiny_llava`."""

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from calibration.tiny_llava.batches import Batch, draw_batch
from calibration.tiny_llava.checkpoint import build_model, save_checkpoint
from calibration.tiny_llava.reader import Layout, build_layout, initialise_reader, reading_loss
from calibration.tiny_llava.scenes import Pools, build_pools
from calibration.tiny_llava.tower import (
    align_projector,
    cosine_rate,
    dense_head,
    dense_loss,
    patch_features,
    train_tower,
)

POOL_SEED, TOWER_SEED, READER_SEED = 1, 0, 13
HEAD_STEPS = 300
"""Steps in which the training head of a given tower is fitted."""
QUESTIONS_PER_IMAGE = 8
READER_BATCH = 32
READER_RATE, UNFROZEN_TOWER_RATE = 1.5e-3, 1e-3
# In this share of the steps text sees the image only from a random layer of LATE_LAYERS on, so that the model reads it
# late, and pruning visual tokens at layer 4 can cost something.
LATE_SHARE, LATE_LAYERS = 0.7, (1, 5)
CONVERSATION_SHARE = 0.15
TOWER_FROZEN_SHARE = 0.65
_DENSE_WEIGHT = 0.3
_SAVE_EVERY = 500


@dataclass
class Trainee:
    """What training changes, and what it needs to go on after a stop."""

    model: LlavaForConditionalGeneration
    head: nn.Module
    work: Path
    log: list[dict[str, object]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def report(self, stage: str, figures: dict[str, float]) -> None:
        """Prints and keeps one line of figures."""
        line = {"stage": stage, "seconds": round(time.monotonic() - self.started, 1), **figures}
        self.log.append(line)
        print(json.dumps(line), flush=True)

    def save(self, name: str, **extra: object) -> None:
        """Writes the state to `work`/NAME.pt, which `load` reads."""
        state = {"model": self.model.state_dict(), "head": self.head.state_dict(), "log": self.log, **extra}
        partial = self.work / f"{name}.pt.partial"
        torch.save(state, partial)
        partial.replace(self.work / f"{name}.pt")

    def load(self, name: str) -> dict[str, Any] | None:
        """Restores the state written by `save`, or returns None if there is none."""
        path = self.work / f"{name}.pt"
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, weights_only=False)
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.log = state["log"]
        if self.log:
            self.started = time.monotonic() - float(str(self.log[-1]["seconds"]))
        return state


def reader_step(
    trainee: Trainee, batch: Batch, layout: Layout, first_layer: int, tower_frozen: bool
) -> tuple[torch.Tensor, float]:
    """The loss to minimise in one step of stage 3, and the reading part of it as a number."""
    with torch.set_grad_enabled(not tower_frozen):
        features = patch_features(trainee.model, batch.pixels)
    reading = reading_loss(trainee.model, features, batch, layout, first_layer)
    if tower_frozen:
        return reading, reading.item()
    return reading + _DENSE_WEIGHT * dense_loss(trainee.head(features), batch), reading.item()


def train_reader(
    trainee: Trainee,
    pools: Pools,
    steps: int,
    device: str,
    batch_size: int = READER_BATCH,
    seed: int = READER_SEED,
    open_steps: int = 0,
) -> None:
    """Stage 3: trains the whole model in place; the tower only in the last third of the steps.

    In the first `open_steps` the text always sees the image: some seeds do not learn to read it otherwise.
    """
    model = trainee.model
    tower = [*model.model.vision_tower.parameters(), *trainee.head.parameters()]
    reader = [parameter for name, parameter in model.named_parameters() if "vision_tower" not in name]
    optimiser = torch.optim.AdamW([{"params": reader}, {"params": tower}], weight_decay=0.03, betas=(0.9, 0.98))
    layouts = [build_layout(name, QUESTIONS_PER_IMAGE, device) for name in ("separate", "conversation")]
    rng = np.random.default_rng(seed)
    first_step, average = 0, 0.0
    if (state := trainee.load("reader")) is not None:
        optimiser.load_state_dict(state["optimiser"])
        rng.bit_generator.state = state["rng"]
        first_step, average = state["step"], state["average"]
    for step in range(first_step, steps):
        factor = cosine_rate(step, steps, floor=0.03)
        for group, rate in zip(optimiser.param_groups, (READER_RATE, UNFROZEN_TOWER_RATE), strict=True):
            group["lr"] = rate * factor
        batch = draw_batch(pools, rng, batch_size, QUESTIONS_PER_IMAGE, device)
        layout = layouts[int(rng.random() < CONVERSATION_SHARE)]
        first_layer = int(rng.integers(LATE_LAYERS[0], LATE_LAYERS[1] + 1)) if rng.random() < LATE_SHARE else 0
        first_layer = 0 if step < open_steps else first_layer
        loss, reading = reader_step(trainee, batch, layout, first_layer, step < TOWER_FROZEN_SHARE * steps)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader, 1.0)
        nn.utils.clip_grad_norm_(tower, 1.0)
        optimiser.step()
        average = reading if step == 0 else 0.98 * average + 0.02 * reading
        if step % 100 == 99:
            trainee.report("reader", {"step": step + 1, "loss": round(average, 4)})
        if step % _SAVE_EVERY == _SAVE_EVERY - 1:
            progress = {"step": step + 1, "average": average, "rng": rng.bit_generator.state}
            trainee.save("reader", optimiser=optimiser.state_dict(), **progress)


def train(
    work: Path,
    tower_steps: int,
    align_steps: int,
    reader_steps: int,
    device: str = "cpu",
    reader_seed: int = READER_SEED,
    tower_of: Path | None = None,
    open_steps: int = 0,
) -> Trainee:
    """Runs the three stages, or what is left of them according to `work`.

    Args:
        work: folder for the states between stages; a second run goes on from the last.
        tower_steps: steps of stage 1, the vision tower.
        align_steps: steps of stage 2, the projector.
        reader_steps: steps of stage 3, the whole model.
        device: "cpu" or "cuda".
        reader_seed: of stages 2 and 3: another reader of the same recipe.
        tower_of: a trained checkpoint, whose vision tower takes the place of stage 1.
        open_steps: see `train_reader`.
    """
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(TOWER_SEED)
    trainee = Trainee(build_model().to(device), dense_head().to(device), work)
    pools = build_pools("train", POOL_SEED, variants=32, backgrounds=4000)
    if trainee.load("tower") is None:
        if tower_of is not None:
            given = LlavaForConditionalGeneration.from_pretrained(tower_of, dtype=torch.float32, local_files_only=True)
            trainee.model.model.vision_tower.load_state_dict(given.model.vision_tower.state_dict())
        steps = tower_steps if tower_of is None else HEAD_STEPS
        head_alone = tower_of is not None
        train_tower(trainee.model, trainee.head, pools, steps, device, trainee.report, head_alone=head_alone)
        trainee.save("tower")
    if not (work / "reader.pt").exists():
        torch.manual_seed(reader_seed)
        initialise_reader(trainee.model)
        align_projector(trainee.model, pools, align_steps, device, trainee.report)
    train_reader(trainee, pools, reader_steps, device, seed=reader_seed, open_steps=open_steps)
    return trainee


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--work", type=Path, default=Path(".scratch/tiny_llava"), help="where to keep training states")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads for torch")
    parser.add_argument("--tower-steps", type=int, default=5000)
    parser.add_argument("--align-steps", type=int, default=200)
    parser.add_argument("--reader-steps", type=int, default=4500)
    parser.add_argument("--reader-seed", type=int, default=READER_SEED, help="another reader of the same recipe")
    parser.add_argument("--tower-of", metavar="FOLDER", type=Path, help="take a checkpoint's tower, skip stage 1")
    parser.add_argument("--open-steps", type=int, default=0, help="first steps of the reader without late reading")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steps = (arguments.tower_steps, arguments.align_steps, arguments.reader_steps)
    options = {"device": arguments.device, "reader_seed": arguments.reader_seed, "tower_of": arguments.tower_of}
    trainee = train(arguments.work, *steps, open_steps=arguments.open_steps, **options)
    save_checkpoint(trainee.model, arguments.output)
    log = {"device": arguments.device, "torch": torch.__version__, "steps": steps, "log": trainee.log}
    (arguments.work / "log.json").write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    main()
