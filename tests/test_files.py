"""The cache: other processes see a whole file or none, and a full disk is called that."""

from __future__ import annotations

from pathlib import Path

import pytest

from iwp_export.files import whole_file


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x"
    with whole_file(path) as file:
        file.write_bytes(b"half")
        assert not path.exists()
        file.write_bytes(b"whole")
    assert path.read_bytes() == b"whole" and list(path.parent.iterdir()) == [path]


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(OSError, match="the disk is full") as caught, whole_file(path):
        Path("/dev/full").write_bytes(b"x")
    assert (caught.value.strerror, caught.value.filename) == ("the disk is full", str(path))
    assert list(tmp_path.iterdir()) == []


def test_another_error_stays_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError), whole_file(tmp_path / "file" / "x"):
        pass
