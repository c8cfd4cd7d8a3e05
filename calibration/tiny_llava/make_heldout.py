"""Draws the held-out questions: `python -m calibration.tiny_llava.make_heldout -o calibration/tiny_llava/heldout`."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.tiny_llava import HELDOUT
from calibration.tiny_llava.batches import answer_to
from calibration.tiny_llava.scenes import build_pools, draw_scene
from calibration.tiny_llava.vocabulary import KINDS, question_text

NUM_IMAGES = 200
_POOL_SEED, _SCENE_SEED = 1001, 1002


def draw_questions() -> Iterator[tuple[dict[str, Any], NDArray[np.uint8]]]:
    """Draws one question of each kind about each image; always the same ones.

    Yields:
        A line of the file: image, prompt, answer, kind, and box, (left, top, right, bottom) of the asked digit in
        pixels or None for a count; and the image, [112, 112, 3] (uint8).
    """
    pools = build_pools("heldout", _POOL_SEED, variants=4, backgrounds=400)
    rng = np.random.default_rng(_SCENE_SEED)
    for number in range(NUM_IMAGES):
        scene = draw_scene(pools, rng)
        for kind in KINDS:
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


def write(folder: Path) -> None:
    """Writes the questions and their images (lossless PNG) to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / HELDOUT.name).open("w", encoding="utf-8") as file:
        for line, image in draw_questions():
            if line["kind"] == KINDS[0]:
                Image.fromarray(image).save(folder / line["image"], optimize=True)
            file.write(json.dumps(line) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    write(parser.parse_args().output)


if __name__ == "__main__":
    main()
