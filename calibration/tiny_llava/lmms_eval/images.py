"""The images of tiny-llava's held-out questions, for the task beside this file."""

from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "heldout"


def images(line: Mapping[str, str]) -> list[str]:
    """Files of a question's images."""
    return [str(FOLDER / line["image"])]
