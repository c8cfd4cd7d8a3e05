"""Draws questions with their images; always the same ones.

    python -m calibration.tiny_llava.make_questions heldout -o calibration/tiny_llava/heldout
    python -m calibration.tiny_llava.make_questions samples -o iwp_export/assets/tiny_llava_samples

`heldout` has digits and photos that training never uses, three questions an image. `samples`, of the training split,
is for calibrations: one question an image, so that they differ more.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.tiny_llava.batches import answer_to
from calibration.tiny_llava.scenes import Split, build_pools, draw_scene
from calibration.tiny_llava.vocabulary import KINDS, question_text

FILE = "questions.jsonl"


@dataclass(frozen=True)
class Draw:
    """What is drawn: `each` questions about each image, of every kind or of one after another."""

    split: Split
    images: int
    each: int
    pool_seed: int
    scene_seed: int


DRAWS = {"heldout": Draw("heldout", 200, len(KINDS), 1001, 1002), "samples": Draw("train", 96, 1, 2001, 2002)}


def draw_questions(draw: Draw) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8]]]:
    """Draws questions about each image.

    Yields:
        A line of the file: image, prompt, answer, kind, and box, (left, top, right, bottom) of the asked digit in
        pixels or None for a count; and the image, [112, 112, 3] (uint8).
    """
    pools = build_pools(draw.split, draw.pool_seed, variants=4, backgrounds=400)
    rng = np.random.default_rng(draw.scene_seed)
    for number in range(draw.images):
        scene = draw_scene(pools, rng)
        for kind in (KINDS * 2)[number % len(KINDS) :][: draw.each] if draw.each < len(KINDS) else KINDS:
            asked = int(rng.integers(len(scene.digits)))
            digit = scene.digits[asked]
            line = {
                "image": f"{number:03d}.png",
                "prompt": question_text(kind, digit.value, digit.colour),
                "answer": answer_to(scene, kind, asked),
                "kind": kind,
                "box": None if kind == "count" else list(digit.box),
            }
            yield line, scene.image


def write(draw: Draw, folder: Path) -> None:
    """Writes the questions and their images (lossless PNG) to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("w", encoding="utf-8") as file:
        last = ""
        for line, image in draw_questions(draw):
            if line["image"] != last:
                Image.fromarray(image).save(folder / line["image"], optimize=True)
            last = line["image"]
            file.write(json.dumps(line) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("draw", choices=tuple(DRAWS))
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    write(DRAWS[arguments.draw], arguments.output)


if __name__ == "__main__":
    main()
