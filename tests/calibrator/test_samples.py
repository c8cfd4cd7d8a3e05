"""Samples from a folder or a file: their order, their digest, and what is no sample."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from iwp_export.calibrator.samples import GENERIC_PROMPTS, GENERIC_WARNING, Samples, read_samples
from iwp_export.errors import DataError
from iwp_export.questions import Question, digest_of


@pytest.fixture
def shots(tmp_path) -> Path:
    """Seven images in a folder and one in a folder of it, beside what is none."""
    folder = tmp_path / "shots"
    (folder / "more").mkdir(parents=True)
    for number in range(7):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number}.png")
    Image.new("RGB", (4, 4)).save(folder / "more" / "UPPER.JPG")
    (folder / "notes.txt").write_text("no image")
    (folder / "looks.png").mkdir()
    return folder


def write(file: Path, *lines: object) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def asked(samples: Samples) -> list[tuple[str, str]]:
    return [(question.images[0].name, question.prompt) for question in samples.questions]


def test_a_folder_with_prompts(shots, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufefffirst ?\n\n  second ?  \r\nthird ?", encoding="utf-8")
    samples = read_samples(shots, prompts, most=96)
    assert (samples.name, samples.warning, samples.answers) == ("shots", "", False)
    assert sorted(asked(samples)) == [
        *((f"{number}.png", ("first ?", "second ?", "third ?")[number % 3]) for number in range(7)),
        ("UPPER.JPG", "second ?"),
    ]


def test_a_folder_without_prompts_is_asked_generic_ones_and_says_so(shots):
    samples = read_samples(shots, most=96)
    assert samples.warning == GENERIC_WARNING
    assert {prompt for _, prompt in asked(samples)} == set(GENERIC_PROMPTS)


def test_a_file_has_its_own_prompts(shots, tmp_path):
    file = write(
        tmp_path / "asked.jsonl",
        {"image": "shots/0.png", "prompt": "what ?", "answer": "a"},
        {"images": ["shots/1.png", "shots/2.png"], "prompt": "which ?", "answer": ""},
    )
    samples = read_samples(file, most=96)
    assert samples.answers and samples.name == "asked.jsonl" and not samples.warning
    assert sorted(len(question.images) for question in samples.questions) == [1, 2]
    with pytest.raises(DataError, match="has its own prompts") as refused:
        read_samples(file, file, most=96)
    assert refused.value.options == ("prompts",)
    write(file, {"image": "shots/0.png", "prompt": "a", "answer": "a"}, {"image": "shots/0.png", "prompt": "b"})
    assert not read_samples(file, most=96).answers


def test_the_seed_is_of_the_order_and_of_the_draw(shots):
    order = asked(read_samples(shots, most=96))
    assert order == asked(read_samples(shots, most=96)) != asked(read_samples(shots, most=96, seed=1))
    assert sorted(order) == sorted(asked(read_samples(shots, most=96, seed=1)))
    for most in (1, 3):
        assert asked(read_samples(shots, most=most)) == order[:most]


def test_the_digest_changes_with_whatever_a_score_depends_on(shots):
    images = tuple(sorted(shots.glob("?.png")))
    first, second = Question(images[:1], "a", ("x",)), Question(images[1:2], "b", ("y",))
    content = images[0].read_bytes()
    digests = [
        digest_of(questions)
        for questions in (
            [first, second],
            [second, first],
            [first],
            [Question(images[:1], "a"), second],
            [Question(images[:1], "a", ("",)), second],
            [Question(images[:1], "ax", ("",)), second],
            [Question(images[:2], "a", ("x",)), second],
            [Question(images[:1], "b", ("x",)), second],
        )
    ]
    before = digest_of([first, second])
    images[0].write_bytes(content + b"\0")
    digests.append(digest_of([first, second]))
    assert len(set(digests)) == len(digests)
    images[0].write_bytes(content)
    assert digest_of([first, second]) == before
    moved = images[0].rename(shots / "moved.png")
    assert digest_of([Question((moved,), "a", ("x",)), second]) == before


def test_what_has_no_samples_is_one_line(shots, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes("où ?".encode("latin-1"))
    for data, prompts, message in (
        (tmp_path / "empty", None, "has no images"),
        (tmp_path / "none", None, "cannot read questions"),
        (tmp_path / "blank.txt", None, "has no questions"),
        (shots, tmp_path / "blank.txt", "has no prompts"),
        (shots, tmp_path / "latin.txt", "it is not UTF-8"),
        (shots, tmp_path / "none.txt", "No such file"),
        (shots, shots, "Is a directory"),
    ):
        with pytest.raises(DataError, match=message) as refused:
            read_samples(data, prompts, most=96)
        assert "\n" not in str(refused.value)
    with pytest.raises(DataError, match="cannot read the image"):
        digest_of([Question((tmp_path / "gone.png",), "a")])
