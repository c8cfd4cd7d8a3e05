"""Draws the held-out questions: `python -m calibration.tiny_llava.make_heldout -o calibration/tiny_llava/heldout`."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from calibration.tiny_llava.batches import answer_to
from calibration.tiny_llava.heldout import QUESTIONS_FILE, Question
from calibration.tiny_llava.scenes import build_pools, draw_scene
from calibration.tiny_llava.vocabulary import KINDS, question_text

NUM_IMAGES = 200
_POOL_SEED, _SCENE_SEED = 1001, 1002


def draw_questions() -> Iterator[Question]:
    """Draws one question of each kind about each image; always the same ones."""
    pools = build_pools("heldout", _POOL_SEED, variants=4, backgrounds=400)
    rng = np.random.default_rng(_SCENE_SEED)
    for number in range(NUM_IMAGES):
        scene = draw_scene(pools, rng)
        for kind in KINDS:
            asked = int(rng.integers(len(scene.digits)))
            digit = scene.digits[asked]
            yield Question(
                image=scene.image,
                image_name=f"{number:03d}.png",
                question=question_text(kind, digit.value, digit.colour),
                answer=answer_to(scene, kind, asked),
                kind=kind,
                box=None if kind == "count" else digit.box,
            )


def write(folder: Path) -> None:
    """Writes the questions and their images (lossless PNG) to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for question in draw_questions():
        path = folder / question.image_name
        if question.kind == KINDS[0]:
            Image.fromarray(question.image).save(path, optimize=True)
        entry = {
            "image": question.image_name,
            "kind": question.kind,
            "question": question.question,
            "answer": question.answer,
            "box": question.box,
        }
        lines.append(json.dumps(entry))
    (folder / QUESTIONS_FILE).write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    write(parser.parse_args().output)


if __name__ == "__main__":
    main()
