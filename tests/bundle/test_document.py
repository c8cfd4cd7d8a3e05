"""JSON files with a format, a version and a digest: anything else than what was written is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iwp_export.bundle.document import Document
from iwp_export.bundle.outputs import FILE_LIMIT
from iwp_export.bundle.schema import Flaw
from iwp_export.errors import BundleError
from tests.bundle.test_schema import WHOLE, Celsius, Whole

DOCUMENT = Document(Whole, "whole", "is no whole: it", "make it again", lambda data, where: f"run make {where}")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "whole.json"
    file.write_text(DOCUMENT.to_text(WHOLE))
    assert DOCUMENT.read(file, "it") == WHOLE
    assert list(json.loads(file.read_text()))[:3] == ["format", "schema_version", "digest"]
    assert json.loads(file.read_text())["warm"] == {"kelvin": 293}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flag": False}, "^it was changed by hand or damaged: its digest differs; make it again$"),
        ({"digest": None}, "changed by hand"),
        ({"more": 1}, "changed by hand"),
        ({"format": "hole"}, "^it is no whole: it has no format 'whole'$"),
        ({"schema_version": 1}, "^it has schema version 1, this version reads 4: run make it$"),
        ({"schema_version": 5}, "^it has schema version 5, this version reads 4: upgrade iwp-export$"),
        ({"schema_version": 0}, "^it is damaged: its schema_version is 0; make it again$"),
        ({"schema_version": True}, "schema_version is True"),
        ({"schema_version": "2"}, "schema_version is '2'"),
        ({"schema_version": 10**100}, "upgrade iwp-export$"),
    ],
)
def test_another_content_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        DOCUMENT.from_dict({**DOCUMENT.to_dict(WHOLE), **change}, "it")


def test_the_digest_is_of_the_content_and_not_of_its_layout() -> None:
    data = DOCUMENT.to_dict(WHOLE)
    assert DOCUMENT.from_dict(json.loads(json.dumps(data, sort_keys=True, indent=7)), "it") == WHOLE


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": ' * 100_000, "\x00", '{"a": 1' + "0" * 5000 + "}"])
def test_what_is_no_json_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "whole.json").write_text(text)
    with pytest.raises(BundleError, match=r"^it is damaged: whole\.json is not JSON .*make it again$"):
        DOCUMENT.read(tmp_path / "whole.json", "it")


def test_deep_nesting_is_one_line(tmp_path: Path) -> None:
    for depth in (300, 900, 2000, 20_000):
        text = '{"format": "whole", "schema_version": 4, "x": ' + "[" * depth + "]" * depth + "}"
        (tmp_path / "whole.json").write_text(text)
        with pytest.raises(BundleError, match=r"^it "):
            DOCUMENT.read(tmp_path / "whole.json", "it")


def test_a_file_too_large_to_be_one_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "whole.json").open("wb") as file:
        file.truncate(FILE_LIMIT + 1)
    with pytest.raises(BundleError, match=r"whole\.json is larger than"):
        DOCUMENT.read(tmp_path / "whole.json", "it")


def test_what_could_not_be_read_is_not_written() -> None:
    broken = Whole(WHOLE.parts, WHOLE.pair, "a", -5, 1, True, Celsius(1.0), "low", {})
    with pytest.raises(Flaw, match="token is -5"):
        DOCUMENT.to_text(broken)
