"""Questions from JSON lines: what a line may hold, and one clear line for what it may not."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from calibration.tiny_llava import HELDOUT
from iwp_export.errors import DataError
from iwp_export.questions import SHIPPED, Question, digest_of, open_data, read_questions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    return tmp_path


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "questions.jsonl"
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


def test_paths_are_relative_to_the_file_and_further_fields_are_passed_over(folder: Path) -> None:
    path = write(
        folder,
        {"image": "a.png", "prompt": "what ?", "answer": "7", "kind": "digit", "box": [1, 2], "id": 5},
        b"  ",
        {"images": ["a.png", str(folder / "b.png")], "prompt": "Welche Größe?"},
    )
    assert list(read_questions(path)) == [
        Question((folder / "a.png",), "what ?", ("7",), "digit"),
        Question((folder / "a.png", folder / "b.png"), "Welche Größe?"),
    ]


def test_several_answers_stand_in_the_place_of_one(folder: Path) -> None:
    path = write(
        folder,
        {"image": "a.png", "prompt": "x", "answers": ["tan", "red", "red"]},
        {"image": "a.png", "prompt": "x", "answer": "red"},
        {"image": "a.png", "prompt": "x"},
    )
    several, single, none = read_questions(path)
    assert (several.answer, several.answers) == ("tan", ("tan", "red", "red"))
    assert (single.answers, none.answers, none.answer) == (("red",), (), None)
    assert len({digest_of([question]) for question in (several, single, none)}) == 3


def test_a_byte_order_mark_and_a_missing_last_newline_are_no_errors(folder: Path) -> None:
    path = folder / "q.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"image": "a.png", "prompt": "x"}\r\n{"image": "b.png", "prompt": "y"}')
    assert [question.prompt for question in read_questions(path)] == ["x", "y"]


def test_lines_are_read_as_they_are_asked_for(folder: Path) -> None:
    path = write(folder, {"image": "a.png", "prompt": "x"}, b"broken")
    assert len(list(islice(read_questions(path), 1))) == 1
    with pytest.raises(DataError, match="line 2"):
        list(read_questions(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON: .* at column 2"),
        (b"\xff{}", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        ([], "a question is a JSON object, got a list"),
        ({"image": "a.png"}, "`prompt` must be a text that is not empty, got None"),
        ({"image": "a.png", "prompt": " "}, "`prompt` must be a text that is not empty"),
        ({"prompt": "x"}, "give either `image`, a path, or `images`, a list of paths"),
        ({"image": "a.png", "images": ["a.png"], "prompt": "x"}, "give either `image`"),
        ({"image": ["a.png"], "prompt": "x"}, r"`image` must be a path, got \['a.png'\]"),
        ({"images": "a.png", "prompt": "x"}, "`images` must be a list of one path or more, got 'a.png'"),
        ({"images": [], "prompt": "x"}, "`images` must be a list of one path or more"),
        ({"image": "c.png", "prompt": "x"}, "there is no image .*c.png"),
        ({"image": "a.png", "prompt": "x", "answer": 7}, "`answer` must be a text, got 7"),
        ({"image": "a.png", "prompt": "x", "answers": []}, "`answers` must be a list of one text or more"),
        ({"image": "a.png", "prompt": "x", "answers": "7"}, "`answers` must be a list .* got '7'"),
        ({"image": "a.png", "prompt": "x", "answers": [7]}, "`answers` must be a list"),
        (
            {"image": "a.png", "prompt": "x", "answer": "7", "answers": ["7"]},
            "give either `answer`, a text, or `answers`, a list of texts",
        ),
        ({"image": "a.png", "prompt": "x", "kind": []}, "`kind` must be a text"),
    ],
)
def test_a_bad_line_costs_one_line(folder: Path, line: Any, message: str) -> None:
    path = write(folder, {"image": "a.png", "prompt": "x"}, line)
    with pytest.raises(DataError, match=f"questions.jsonl, line 2: {message}") as error:
        list(read_questions(path))
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_or_is_empty(folder: Path) -> None:
    with pytest.raises(DataError, match=r"none.jsonl: No such file"):
        list(read_questions(folder / "none.jsonl"))
    with pytest.raises(DataError, match="Is a directory"):
        list(read_questions(folder))
    with pytest.raises(DataError, match="has no questions"):
        list(read_questions(write(folder, b"")))


def test_tiny_llava_has_held_out_questions_of_its_own() -> None:
    own = open_data(None, "tiny-llava")
    assert (own.name, len(own.questions)) == ("tiny-llava's held-out set", 600)
    assert own.questions == tuple(read_questions(HELDOUT)) and all(question.answer for question in own.questions)
    assert open_data(str(HELDOUT), "", 7).questions == own.questions[:7]
    calibrated = {digest_of([question]) for question in read_questions(SHIPPED["tiny-llava"]["samples"])}
    assert not calibrated & {digest_of([question]) for question in own.questions[:96]}


def test_a_model_without_questions_of_its_own_needs_a_file() -> None:
    assert open_data(HELDOUT, "my-llava", 2).name == "questions.jsonl"
    with pytest.raises(DataError, match="no questions ship for my-llava: give a file") as refused:
        open_data(None, "my-llava")
    assert refused.value.options == ("data",)


def test_the_digest_changes_with_whatever_a_score_depends_on(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(bytes(number + 1))
    images = tuple(sorted(tmp_path.glob("?.png")))
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
    moved = images[0].rename(tmp_path / "moved.png")
    assert digest_of([Question((moved,), "a", ("x",)), second]) == before
    with pytest.raises(DataError, match="cannot read the image"):
        digest_of([Question((tmp_path / "gone.png",), "a")])
