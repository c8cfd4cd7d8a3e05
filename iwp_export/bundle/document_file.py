"""Documents that are a file of their own, at a path that a user gives: recipes and reports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from iwp_export.bundle.document import Document
from iwp_export.bundle.schema import CONTROL, Flaw, shown
from iwp_export.cache import whole_file
from iwp_export.errors import IwpError, OutputError, os_reason

T = TypeVar("T")


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


def check_output(path: Path, force: bool = False) -> str:
    """Refuse a file that cannot be written; returns its name as text.

    Raises:
        OutputError: it is there already or a folder, has a name that cannot be printed, or its folder cannot be made or
            written.
    """
    where = plain_name(path, OutputError)
    try:
        _check_folder(path.parent, where)
        path.exists()  # a name that is too long, for example
    except OSError as error:
        raise OutputError(f"Cannot write {where}: {os_reason(error)}", options=("output",)) from error
    if path.is_dir():
        raise OutputError(f"Cannot write {where}: it is a folder", options=("output",))
    if path.exists() and not force:
        raise OutputError(
            f"Cannot write {where}: it already exists. Remove it, choose another output, or replace it",
            options=("output", "force"),
        )
    return where


def _check_folder(folder: Path, where: str) -> None:
    """Refuse a folder that is none or that may not be written; of one that is still to be made, the first above it.

    Raises:
        OutputError: see above.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(f"Cannot write {where}: {folder} is not a folder", options=("output",))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"Cannot write {where}: the folder {folder} may not be written", options=("output",))


def plain_name(path: Path, error: type[IwpError]) -> str:
    """A path as text that a terminal and a document can hold.

    Raises:
        IwpError: of the kind given; it has control characters, or bytes that are no text.
    """
    if CONTROL.search(str(path)):
        raise error(f"the file name {shown(str(path))} has characters that cannot be printed; rename the file")
    return str(path)
