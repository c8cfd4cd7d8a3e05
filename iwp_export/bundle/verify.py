"""What bundles and engines consist of: the files that their description lists, plain ones, and data alone."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from iwp_export.bundle.manifest import FileEntry
from iwp_export.bundle.schema import Flaw
from iwp_export.progress import progress

Verify = Literal["quick", "full"]

QUICK_HASH_LIMIT = 64 << 20
"""Bytes up to which a quick verification hashes a file; of larger ones it checks the size."""
READ_SIZE = 4 << 20
WHOLE_FOLDER = (".",)

PROGRAMS = (".py", ".pyc", ".pyo", ".pyw", ".pyd", ".pyx", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat")
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz")
"""Files that can hold Python objects, which run code when they are opened."""


def plain_files(folder: Path, roots: Iterable[str] = WHOLE_FOLDER) -> list[str]:
    """Names, with slashes, of the files in a folder, but for hidden ones: file managers and Git leave those.

    Args:
        folder: what names are relative to.
        roots: files and folders in it to look at.

    Raises:
        Flaw: something is a link, hidden or not, or neither file nor folder.
        OSError: a folder cannot be read.
    """
    names = []
    for name, path in _entries(folder, roots):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise Flaw(f"{name} is a link, and files must lie in the folder itself")
        if stat.S_ISDIR(mode) or any(part.startswith(".") for part in PurePosixPath(name).parts):
            continue
        if not stat.S_ISREG(mode):
            raise Flaw(f"{name} is not a plain file")
        names.append(name)
    return sorted(names)


def foreign_entry(folder: Path, known: Collection[str], roots: Iterable[str] = WHOLE_FOLDER) -> str | None:
    """The first entry of a folder, hidden or not, that is neither a known file nor a folder that holds some."""
    folders = {parent.as_posix() for name in known for parent in PurePosixPath(name).parents}
    for name, path in _entries(folder, roots):
        expected = folders if path.is_dir() else known
        if name not in expected or path.is_symlink():
            return name
    return None


def hash_files(folder: Path, names: Collection[str], title: str, sync: bool = False) -> dict[str, FileEntry]:
    """Sizes and hashes of files; with `sync`, each is also forced to the disk."""
    entries = {}
    total = sum((folder / name).stat().st_size for name in names)
    with progress(title, total, unit="bytes") as advance:
        for name in names:
            digest, size = hashlib.sha256(), 0
            with (folder / name).open("rb") as file:
                while block := file.read(READ_SIZE):
                    digest.update(block)
                    size += len(block)
                    advance(len(block))
                if sync:
                    with suppress(PermissionError):  # some systems sync only what is open for writing
                        os.fsync(file.fileno())
            entries[name] = FileEntry(size, digest.hexdigest())
    return entries


def check_files(
    folder: Path, present: Collection[str], files: Mapping[str, FileEntry], verify: Verify, title: str
) -> None:
    """Compare a folder with a list of its files.

    Args:
        folder: what names are relative to.
        present: the names of the files that are there.
        files: the list.
        verify: `quick` checks all sizes, and the hashes of files up to 64 MiB; `full` checks all hashes.
        title: what a progress bar says.

    Raises:
        Flaw: a file is missing, is not in the list, or has another size or content.
        OSError: a file cannot be read.
    """
    if verify not in get_args(Verify):
        raise ValueError(f"verify must be one of {', '.join(get_args(Verify))}, got {verify!r}")
    for name, entry in files.items():
        if name not in present:
            raise Flaw(f"{name} is missing")
        size = (folder / name).stat().st_size
        if size != entry.bytes:
            raise Flaw(f"{name} has {size:,} bytes, not {entry.bytes:,}")
    if extra := set(present) - files.keys():
        raise Flaw(f"{min(extra)} does not belong to it")
    names = [name for name, entry in files.items() if verify == "full" or entry.bytes <= QUICK_HASH_LIMIT]
    for name, found in hash_files(folder, names, title).items():
        if found.sha256 != files[name].sha256:
            raise Flaw(f"the content of {name} changed (its SHA-256 differs)")


def check_no_code(folder: Path, names: Iterable[str]) -> None:
    """Refuse what would make a bundle or an engine more than data.

    Raises:
        Flaw: a file is a program or may hold pickles, or a JSON file has `auto_map`, with which transformers imports
            Python from the folder.
        OSError: a file cannot be read.
    """
    for name in names:
        suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
        if any(suffix in PROGRAMS + PICKLES for suffix in suffixes):
            raise Flaw(f"{name} can hold code, and only data belongs here")
        if suffixes[-1:] == [".json"]:
            try:
                json.loads((folder / name).read_bytes(), object_pairs_hook=_Members(name))
            except (ValueError, RecursionError) as error:
                raise Flaw(f"{name} is not JSON ({error})") from error


class _Members:
    """Looks at the members of each object of a JSON file, and keeps nothing."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, pairs: list[tuple[str, Any]]) -> None:
        for key, value in pairs:
            if key == "auto_map" and not isinstance(value, int):  # a number is a token's, in a vocabulary
                raise Flaw(f"{self._name} has auto_map, which names Python code to run, and only data belongs here")


def _entries(folder: Path, roots: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Name and path of each of `roots` that is there, and of everything below."""

    def stop(error: OSError) -> None:
        raise error

    for root in roots:
        top = folder / root
        if root != "." and os.path.lexists(top):
            yield root, top
        if top.is_dir() and not (root != "." and top.is_symlink()):
            for parent, folders, files in os.walk(top, onerror=stop):
                for name in (*folders, *files):
                    path = Path(parent, name)
                    yield path.relative_to(folder).as_posix(), path
