"""Where a verb may write: one rule for every output.

An output is never a file that the same command reads, nor an existing one in a folder that it reads; it is no link, and
no part of a bundle or an engine; and it takes the place of another file only with `force`, by one rename.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from iwp_export.bundle.schema import CONTROL, shown
from iwp_export.errors import IwpError, OutputError, os_reason

FILE_LIMIT = 64 << 20
"""Bytes of the largest JSON file that is read; a 7B model's manifest has 0.1 MB."""
MANIFEST = "manifest.json"
BUNDLE_FORMAT = "iwp-bundle"
ENGINE_FORMAT = "iwp-plan"
ENGINE_ENDINGS = (".json", ".vision.plan", ".plan", ".processor")
"""NAME.json describes an engine, the others are its parts."""


def check_outputs(
    paths: Iterable[Path],
    force: bool = False,
    inputs: Iterable[Path | str | None] = (),
    *,
    kinds: Sequence[str] = (),
    noun: str = "output",
    option: str = "output",
) -> None:
    """Refuse, before minutes of work, files that cannot or must not be written.

    Args:
        paths: the files; missing folders are made later.
        force: a file may be replaced.
        inputs: files and folders that are read; None is none, and a name of nothing on the disk is harmless.
        kinds: suffixes that the files may have; empty is any.
        noun: what such a file is called in an error.
        option: the parameter that names the files.

    Raises:
        OutputError: a name has another suffix, is given twice or cannot be printed; it is a link, a folder or a device;
            it is there already; it is read, or a part of an artefact; its folder cannot be made or written.
    """
    sources = [Path(each) for each in inputs if each is not None]
    seen: set[str] = set()
    for path in paths:
        where = plain_name(path, OutputError)
        if kinds and path.suffix not in kinds:
            raise OutputError(f"a {noun}'s name ends in {' or '.join(kinds)}, got {where}", options=(option,))
        check_output(path, force, sources, option=option)
        place = os.path.realpath(path)
        if place in seen:
            raise OutputError(f"{where} is given twice", options=(option,))
        seen.add(place)


def check_output(path: Path, force: bool = False, inputs: Iterable[Path] = (), *, option: str = "output") -> str:
    """`check_outputs` of one file of any kind; returns its name as text."""
    where = plain_name(path, OutputError)
    options = [option]
    try:
        flaw = _flaw(path) or place_flaw(path, inputs)
        if not flaw and path.exists() and not force:
            flaw = "it already exists. Remove it, choose another output, or replace it"
            options.append("force")
    except OSError as error:  # its name is too long, for example
        flaw = os_reason(error)
    if flaw:
        raise OutputError(f"Cannot write {where}: {flaw}", options=tuple(options))
    return where


def place_flaw(path: Path, inputs: Iterable[Path] = ()) -> str:
    """Why nothing, file or folder, may be written at a place; empty if it may.

    Raises:
        OSError: the disk cannot be asked.
    """
    if path.is_symlink():
        return f"it is a link, to {shown(str(path.readlink()))}. Choose another output"
    if artefact := artefact_around(path):
        return inside(artefact)
    place, is_there = os.path.realpath(path), path.exists()
    for source in inputs:
        if place == os.path.realpath(source) or (is_there and source.exists() and path.samefile(source)):
            return "it is read too, and would be replaced. Choose another output"
        if is_there and source.is_dir() and Path(place).is_relative_to(os.path.realpath(source)):
            return f"it is there already, in the folder {source}, which is read too. Choose another output"
    return ""


def inside(artefact: Path) -> str:
    """Why nothing is written into an artefact."""
    return f"it is inside {artefact}, which holds nothing but its own files. Choose another output"


def artefact_around(path: Path) -> Path | None:
    """The bundle in whose folder, or the engine of whose files, a path is; None if there is none.

    A file that says it describes one is believed, even if it was changed: what is there is not ours to change.
    """
    place = Path(os.path.realpath(path.parent), path.name)
    for each in (place, *place.parents):
        for ending in ENGINE_ENDINGS:
            if each.name.endswith(ending):
                info = each.with_name(each.name.removesuffix(ending) + ".json")
                if _format(info) == ENGINE_FORMAT:
                    return info.with_suffix(".plan")
        if each != place and _format(each / MANIFEST) == BUNDLE_FORMAT:
            return each
    return None


def plain_name(path: Path, error: type[IwpError]) -> str:
    """A path as text that a terminal and a document can hold.

    Raises:
        IwpError: of the kind given; it has control characters, or bytes that are no text.
    """
    if CONTROL.search(str(path)):
        raise error(f"the file name {shown(str(path))} has characters that cannot be printed; rename the file")
    return str(path)


def _flaw(path: Path) -> str:
    """What is wrong with a path for a file, whatever else the command reads."""
    folder = path.parent
    while not folder.exists() and folder != folder.parent:  # of one that is still to be made, the first above it
        folder = folder.parent
    if not folder.is_dir():
        return f"{folder} is not a folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"the folder {folder} may not be written"
    if path.is_dir() and not path.is_symlink():
        return "it is a folder"
    if path.exists() and not path.is_file():
        return "it is not a plain file"
    return ""


def _format(file: Path) -> str | None:
    """The field `format` of a JSON file, or None."""
    try:
        small = file.is_file() and file.stat().st_size <= FILE_LIMIT
        found = json.loads(file.read_bytes())["format"] if small else None
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None
    return found if isinstance(found, str) else None
