"""What questions may not exercise: other sizes and modes of images, several images, a second turn, long prompts, texts.

A fault shows only where something meets it. Questions of one data set often have images of one size, short English
prompts and one turn; an artefact that is wrong elsewhere would pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from iwp_export.errors import RequestError
from iwp_export.parity.observation import ParityReference, Sample, samples_of
from iwp_export.questions import Question

PROBE = "probe: "
"""How a probe's name begins."""
LONGEST = 2048
"""Tokens of the long prompt at most: a 7B model takes minutes for them on a CPU."""
IMAGES = (
    ((97, 31), "RGB", "PNG"),
    ((211, 333), "L", "PNG"),
    ((336, 336), "RGBA", "PNG"),
    ((64, 250), "P", "PNG"),
    ((640, 480), "RGB", "JPEG"),
    ((480, 200), "CMYK", "JPEG"),
    ((500, 90), "LA", "PNG"),
    ((33, 57), "1", "PNG"),
)
"""Width and height, Pillow's mode, format."""
TURNED = 6
"""EXIF orientation of the JPEG files: a camera that was held upright."""
TEXTS = (
    "Déjà vu: ¿ 多少 ? Ωμέγα, ключ, العدد 🙂 12,345.67",
    "  two  spaces\tand\ntwo lines\n\n ",
    "ALL CAPS, MixedCase; don't, it's: 3.14e-5 #€%/\\|{}[]",
    "0 1 22 333 4444 55555 1000000 0x1F",
    "averyveryverylongwordwithoutanyspaceinit" * 4,
    "What IS the Number in THIS Picture?",
    "e\u0301 and é, ﬁ and fi, \u00a0 \u200b \u2028",
    "what is the yellow digit ?",
)


def with_probes(
    questions: Sequence[Question], reference: ParityReference, new_tokens: int
) -> tuple[list[Sample], tuple[str, ...]]:
    """Questions, and beside them what they may not exercise, with notes."""
    samples = samples_of(questions)
    if not samples:
        return [], ()
    most = reference.identity.decoder.max_positions - new_tokens
    added, notes = probes(samples, most, lambda sample: len(reference.see(sample)[0]))
    return samples + added, notes


def probes(
    samples: Sequence[Sample], most_tokens: int, count: Callable[[Sample], int]
) -> tuple[list[Sample], tuple[str, ...]]:
    """Samples beside those that are asked.

    Args:
        samples: those; the first one's question and image are asked in two calls, and with another image.
        most_tokens: of the long prompt.
        count: how many tokens the reference makes of a sample; it raises RequestError for one that it does not take.

    Returns:
        The samples, and notes about those that the reference does not take.
    """
    images = [_image(number, *each) for number, each in enumerate(IMAGES)]
    named = zip(IMAGES, images, TEXTS, strict=True)
    made = [
        Sample(f"{PROBE}{w} x {h} {mode} {kind}", text, (image,), "seen") for ((w, h), mode, kind), image, text in named
    ]
    first = next((sample for sample in samples if sample.images), samples[0])
    made.append(Sample(f"{PROBE}two images", first.prompt, (*first.images[:1], images[1])))
    made.append(Sample(f"{PROBE}two calls", first.prompt, first.images, "two calls"))
    count(first)  # where it takes no question, that is an error, not a note
    taken, notes = [], []
    for sample in made:
        try:
            count(sample)
            taken.append(sample)
        except RequestError as error:
            notes.append(f"Not compared, since the reference does not take it: {sample.name} ({error}).")
    return [*taken, _long(min(LONGEST, most_tokens), count)], tuple(notes)


def _long(most: int, count: Callable[[Sample], int]) -> Sample:
    """A prompt of nearly so many tokens: how many words that is, only the tokenizer knows."""
    words = most
    for _ in range(8):
        sample = Sample(f"{PROBE}a long prompt", " ".join(("what is it ? " * words).split()[:words]), (), "long")
        length = count(sample)
        if 0.9 * most <= length <= most:
            break
        words = max(1, int(words * 0.97 * most / length))
    return sample


def _image(seed: int, size: tuple[int, int], mode: str, kind: str) -> bytes:
    """A picture of coarse noise under fine noise, the same on every machine before its format's compression."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (7, 5, 3), np.uint8)
    fine = rng.integers(0, 56, (size[1] // 2 + 1, size[0] // 2 + 1, 3), np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize(size)) + np.asarray(Image.fromarray(fine).resize(size, 0))
    image, buffer = Image.fromarray(picture), BytesIO()
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(picture[..., 0]))
    image = image.convert(mode)
    options = {}
    if kind == "JPEG":
        exif = Image.Exif()
        exif[0x0112] = TURNED
        options["exif"] = exif
    image.save(buffer, kind, **options)
    return buffer.getvalue()
