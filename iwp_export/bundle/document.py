"""JSON files that hold a frozen dataclass: of one format and version, sealed with a digest of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from iwp_export.bundle.outputs import FILE_LIMIT, check_output, plain_name
from iwp_export.bundle.schema import Flaw, from_json, shown, to_json
from iwp_export.errors import BundleError, IwpError, OutputError, os_reason
from iwp_export.files import whole_file

SCHEMA_VERSION = 4
"""Of bundles' and engines' files alike: an engine's file holds the manifest of its bundle."""

T = TypeVar("T")


@dataclass(frozen=True)
class Document(Generic[T]):
    """A kind of JSON file.

    Attributes:
        kind: the dataclass that it holds.
        format: the word in its field `format`.
        foreign: how an error begins whose file has another one, after the file's name.
        remedy: what to do about a damaged one.
        command: the remedy for one of an older version, from its content and its name.
        version: the schema version that is written and read.
        error: what is raised for a file that is not right.
        noun: what people call such a file, where it stands alone.
    """

    kind: type[T]
    format: str
    foreign: str
    remedy: str
    command: Callable[[Mapping[str, Any], str], str]
    version: int = SCHEMA_VERSION
    error: type[IwpError] = BundleError
    noun: str = "document"

    def to_dict(self, value: T) -> dict[str, Any]:
        """JSON values, with `format`, `schema_version` and `digest` first."""
        head, body = {"format": self.format, "schema_version": self.version}, to_json(value)
        return {**head, "digest": _digest_of({**head, **body}), **body}

    def to_text(self, value: T) -> str:
        """The file's text.

        Raises:
            Flaw: it could not be read back.
        """
        text = json.dumps(self.to_dict(value), indent=2)
        self._body(json.loads(text))
        return text + "\n"

    def read(self, file: Path, where: str) -> T:
        """Read a file.

        Raises:
            IwpError: of the kind `error`; it is no JSON, or see `from_dict`.
            OSError: it cannot be read.
        """
        if file.stat().st_size > FILE_LIMIT:
            raise self.error(f"{where} is damaged: {file.name} is larger than {FILE_LIMIT:,} bytes; {self.remedy}")
        try:
            data = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise self.error(f"{where} is damaged: {file.name} is not JSON ({error}); {self.remedy}") from error
        return self.from_dict(data, where)

    def listed_files(self, file: Path) -> set[str] | None:
        """The names under `files` in a file of this or an older version; None if it is none, or has been changed."""
        try:
            data = json.loads(file.read_bytes())
            sealed = data["schema_version"] == 1 or data["digest"] == _digest_of(data)  # version 1 had no digest
            return set(data["files"].keys()) if data["format"] == self.format and sealed else None
        except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return None

    def from_dict(self, data: Any, where: str) -> T:
        """Inverse of `to_dict`.

        Args:
            data: the parsed JSON.
            where: the bundle's or the engine's name, for an error.

        Raises:
            IwpError: of the kind `error`; it is of another format or version, was changed after it was written, or has
                a value that is not right.
        """
        if not isinstance(data, dict) or data.get("format") != self.format:
            raise self.error(f"{where} {self.foreign} has no format {self.format!r}")
        version = data.get("schema_version")
        reads = f"{where} has schema version {shown(version)}, this version reads {self.version}"
        if type(version) is not int or version < 1:
            raise self.error(f"{where} is damaged: its schema_version is {shown(version)}; {self.remedy}")
        if version > self.version:
            raise self.error(f"{reads}: upgrade iwp-export")
        if version < self.version:
            raise self.error(f"{reads}: {self.command(data, where)}")
        try:
            if data.get("digest") != _digest_of(data):
                raise self.error(f"{where} was changed by hand or damaged: its digest differs; {self.remedy}")
            return self._body(data)
        except Flaw as flaw:
            raise self.error(f"{where} is damaged: {flaw}; {self.remedy}") from flaw
        except RecursionError as error:
            raise self.error(f"{where} is damaged: it is nested too deeply; {self.remedy}") from error

    def _body(self, data: dict[str, Any]) -> T:
        body = {name: value for name, value in data.items() if name not in ("format", "schema_version", "digest")}
        value: T = from_json(self.kind, body, "")
        return value


def _digest_of(data: Mapping[str, Any]) -> str:
    """SHA-256 of all fields but `digest`, whatever the order of keys and the layout of the file."""
    body = {name: value for name, value in data.items() if name != "digest"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_file(document: Document[T], path: Path | str) -> T:
    """Read a file.

    Raises:
        IwpError: of the document's kind; it is missing or cannot be read, is of another kind or a newer version, or was
            changed by hand.
    """
    path, noun, error = Path(path), document.noun, document.error
    where = plain_name(path, error)
    try:
        if path.is_dir():
            raise error(f"{where} is a folder, not a {noun}: a {noun} is a JSON file")
        if path.exists() and not path.is_file():
            raise error(f"{where} is not a plain file, and a {noun} is one")
        return document.read(path, where)
    except OSError as failure:
        raise error(f"cannot read the {noun} {where}: {os_reason(failure)}") from failure


def write_file(document: Document[T], value: T, path: Path | str, force: bool = False) -> Path:
    """Write a file, whole or not at all.

    Args:
        document: the kind.
        value: the content.
        path: the file; missing folders are made.
        force: replace a file that is there already.

    Returns:
        `path`.

    Raises:
        OutputError: the file is there already, cannot be written, or could not be read back.
    """
    path = Path(path)
    where = check_output(path, force)
    try:
        text = document.to_text(value)
        with whole_file(path) as file:
            file.write_text(text, encoding="utf-8")
    except Flaw as flaw:
        raise OutputError(f"Cannot write {where}: {flaw}") from flaw
    except OSError as error:
        raise OutputError(f"Cannot write {where}: {os_reason(error)}", options=("output",)) from error
    return path
