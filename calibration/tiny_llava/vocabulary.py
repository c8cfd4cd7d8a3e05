"""The words, colours and question forms of tiny-llava (no torch, no scikit-learn)."""

from typing import Literal

Kind = Literal["digit-of-colour", "colour-of-digit", "count"]
KINDS: tuple[Kind, ...] = ("digit-of-colour", "colour-of-digit", "count")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 240),
    "yellow": (240, 225, 40),
    "magenta": (230, 50, 220),
    "cyan": (40, 220, 230),
    "orange": (245, 140, 20),
    "white": (245, 245, 245),
}
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)

PAD, UNK, BOS, EOS, IMAGE = "<pad>", "<unk>", "<bos>", "<eos>", "<image>"
USER, ASSISTANT = "user", "assistant"
_QUESTION_WORDS = ["what", "is", "the", "digit", "colour", "how", "many", "digits", "are", "there", "?"]
# Words that no question uses: they let a user's prompt differ from the questions without becoming <unk>.
_SPARE_WORDS = ["a", "in", "of", "picture", "image", "number", "which", "this", "here", "please", "yes", "no"]

WORDS: tuple[str, ...] = (
    *(PAD, UNK, BOS, EOS, IMAGE, USER, ASSISTANT),
    *_QUESTION_WORDS,
    *_SPARE_WORDS,
    *map(str, range(10)),
    *COLOUR_NAMES,
)
WORD_ID: dict[str, int] = {word: i for i, word in enumerate(WORDS)}

QUESTION_LENGTH = 6
"""Words of a question, its mark included: the same for all kinds, so that questions batch without padding."""


def question_text(kind: Kind, digit: int, colour: str) -> str:
    """Words a question about the digit `digit` painted in `colour`.

    Args:
        kind: what is asked.
        digit: the asked digit's value; only used by "colour-of-digit".
        colour: the asked digit's colour name; only used by "digit-of-colour".

    Returns:
        `QUESTION_LENGTH` words separated by blanks.
    """
    if kind == "digit-of-colour":
        return f"what is the {colour} digit ?"
    if kind == "colour-of-digit":
        return f"what colour is the {digit} ?"
    return "how many digits are there ?"


def encode(text: str) -> list[int]:
    """Token numbers of `text`, whose words stand between blanks.

    Raises:
        KeyError: a word is not in `WORDS`.
    """
    return [WORD_ID[word] for word in text.split()]
