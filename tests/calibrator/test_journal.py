"""A journal in any state leads to the uninterrupted result, or is refused and left as it is."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iwp_export.calibrator.journal import Entry, Journal
from iwp_export.calibrator.measurements import Measurements
from iwp_export.errors import OutputError
from iwp_export.pruning.settings import PruningSettings
from tests.calibrator.fake import FakeScores, questions
from tests.calibrator.test_measurements import HEADER, SETTINGS, loss, work

EXPECTED = work(Measurements(FakeScores(loss), questions(4)))


def lines_of(file: Path, count: int) -> list[bytes]:
    """Begin a run and stop it; the lines of its journal."""
    measured = Measurements(FakeScores(loss), questions(4), (), Journal(file, HEADER, 4))
    measured.run("some", SETTINGS[:count], 1)
    measured.close(finished=False)
    return file.read_bytes().splitlines(keepends=True)


def changed(line: bytes, **fields: object) -> bytes:
    """A line that says something else, under its old digest."""
    return json.dumps({**json.loads(line), **fields}).encode() + b"\n"


def damaged(lines: list[bytes]) -> dict[str, tuple[bytes, int]]:
    """What a journal of two scores may hold by name, and how many of them can still be used."""
    head, first, second = lines
    return {
        "whole": (b"".join(lines), 2),
        "torn": (b"".join(lines)[:-9], 1),
        "torn header": (head[:-3], 0),
        "empty": (b"", 0),
        "no UTF-8 in a score": (head + b"\xff\n" + second, 1),
        "no object": (head + b"3\n" + second, 1),
        "an empty object": (head + b"{}\n" + second, 1),
        "nested too deeply": (head + b"[" * 100_000 + b"\n" + second, 1),
        "a negative divergence": (head + changed(first, kl=-5.0) + second, 1),
        "another divergence": (head + changed(first, kl=0.01) + second, 1),
        "a list for an answer": (head + changed(first, agrees=[1]) + second, 1),
        "another sample": (head + changed(first, sample=3) + second, 1),
        "another confidence": (head + changed(first, confidence=7) + second, 1),
        "a field too many": (head + changed(first, x=2) + second, 1),
        "a field too few": (head + first.replace(b'"right"', b'"wrong"') + second, 1),
        "another digest": (head + changed(first, digest="0") + second, 1),
        "a score twice": (head + first + first + second, 2),
        "a disk's zeros": (head + first + bytes(64), 1),
    }


@pytest.mark.parametrize("name", list(damaged([b"{}\n"] * 3)))
def test_a_damaged_line_is_measured_again(tmp_path: Path, name: str) -> None:
    file = tmp_path / "folder" / "journal"
    content, good = damaged(lines_of(file, 2))[name]
    file.write_bytes(content)
    for start in range(2):  # the second reads what the first repaired
        scores = FakeScores(loss)
        measured = Measurements(scores, questions(4), (), Journal(file, HEADER, 4))
        assert work(measured) == EXPECTED
        assert len(scores.scored) == (0 if start else 10 - good)
        measured.close(finished=False)


def test_flipped_bits(tmp_path: Path) -> None:
    file, draw = tmp_path / "journal", random.Random(0)
    lines = lines_of(file, 3)
    for _ in range(200):
        content = bytearray(b"".join(lines))
        place = draw.randrange(len(lines[0]), len(content))
        content[place] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        measured = Measurements(FakeScores(loss), questions(4), (), Journal(file, HEADER, 4))
        assert work(measured) == EXPECTED
        measured.close(finished=False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"notes of mine\n", "is another file"),
        (b'{"format": "iwp-recipe"}\n', "is another file"),
        (b"[" * 100_000, "is another file"),
        (b'{"format": "iwp-journal", "model": "cd", "version": "1"}\n', "scores of another calibration"),
    ],
)
def test_other_files_are_replaced_by_force_alone(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "journal"
    file.write_bytes(content)
    with pytest.raises(OutputError, match=reason) as refused:
        Journal(file, HEADER, 4)
    assert file.read_bytes() == content and refused.value.options == ("force",)
    Journal(file, HEADER, 4, force=True).close(finished=False)
    assert file.read_bytes() == lines_of(file, 0)[0]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "journal").symlink_to("mine")
    with pytest.raises(OutputError, match="it is a link"):
        Journal(tmp_path / "journal", HEADER, 4, force=True)
    assert (tmp_path / "mine").read_text() == "mine"


def test_entries_of_samples_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    lines_of(tmp_path / "journal", 1)
    assert Journal(tmp_path / "journal", HEADER, 0).entries == []


def test_a_journal_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "journal"):
        with pytest.raises(OutputError, match="Cannot write"):
            Journal(path, HEADER, 4)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_is_named_by_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal", HEADER, 4)
    with Path("/dev/full").open("wb", buffering=0) as full, monkeypatch.context() as patch:
        patch.setattr(journal, "_file", full)
        with pytest.raises(OutputError, match=r"cannot keep scores in .*journal: the disk is full"):
            journal.add(Entry(0, SETTINGS[0], 0.5, True, None, 0.5, None))


KILLED = """
import sys
from pathlib import Path
from iwp_export.calibrator.journal import Journal
from iwp_export.calibrator.measurements import Measurements
from tests.calibrator.fake import FakeScores, questions
from tests.calibrator.test_journal import slowly
from tests.calibrator.test_measurements import HEADER, work

print("begun", flush=True)
while True:
    work(Measurements(FakeScores(slowly), questions(4), (), Journal(Path(sys.argv[1]), HEADER, 4)))
    Path(sys.argv[1]).unlink()
"""


def slowly(settings: PruningSettings, sample: int) -> float:
    """A loss that takes its time."""
    time.sleep(0.005)
    return loss(settings, sample)


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path) -> None:
    file, draw, left = tmp_path / "journal", random.Random(0), []
    for _ in range(20):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(file)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline()
            time.sleep(draw.random() * 0.1)
            process.kill()
        scores = FakeScores(loss)
        measured = Measurements(scores, questions(4), (), Journal(file, HEADER, 4))
        assert work(measured) == EXPECTED
        measured.close(finished=True)
        left.append(len(scores.scored))
    assert len(set(left)) > 3  # the kills came at different places
