"""What bundles and engines consist of: the files that their description lists, plain ones, and data alone."""

from __future__ import annotations

import hashlib
import json
import mmap
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

    def refuse_code(pairs: list[tuple[str, Any]]) -> None:
        """Look at an object's members, and keep nothing."""
        for key, value in pairs:
            if key == "auto_map" and not isinstance(value, int):  # a number is a token's, in a vocabulary
                raise Flaw(f"{name} has auto_map, which names Python code to run, and only data belongs here")

    for name in names:
        suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
        if any(suffix in PROGRAMS + PICKLES for suffix in suffixes):
            raise Flaw(f"{name} can hold code, and only data belongs here")
        if suffixes[-1:] == [".json"]:
            try:
                json.loads((folder / name).read_bytes(), object_pairs_hook=refuse_code)
            except (ValueError, RecursionError) as error:
                raise Flaw(f"{name} is not JSON ({error})") from error


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


MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
    "Entry": {},
}
"""Fields of onnx.proto that lead to `TensorProto.external_data`, by number; all other fields are skipped."""
KEY, VALUE, OP_TYPE = 1, 2, 4
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types; protobuf's groups (3, 4) are in no ONNX file."""


def external_locations(path: Path) -> set[str]:
    """The `location` of each external tensor of a graph: names relative to the graph's folder.

    It reads every tensor that the format has a place for: initializers, attributes, sparse tensors, those of subgraphs,
    functions and training graphs. It refuses `EPContext` nodes, by which an execution provider reads a compiled model
    from a file. Files that a library of custom operators would read are out of its sight.

    Raises:
        Flaw: the file is not an ONNX graph, or has such a node.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise Flaw(f"{path.name} is not an ONNX graph")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _locations(content)
            except (IndexError, ValueError) as error:
                raise Flaw(f"{path.name} is not an ONNX graph ({error})") from error


def _locations(content: mmap.mmap) -> set[str]:
    found = set()
    messages = [("Model", 0, len(content))]
    while messages:
        kind, start, end = messages.pop()
        known = MESSAGES[kind]
        entry = {KEY: b"", VALUE: b""}
        for field, first, last in _byte_fields(content, start, end):
            if field in known:
                messages.append((known[field], first, last))
            elif kind == "Entry" and field in entry:  # as in protobuf, the last one counts
                entry[field] = content[first:last]
            elif kind == "Node" and field == OP_TYPE and content[first : min(last, first + 10)] == b"EPContext":
                raise Flaw("a graph has an EPContext node, which reads a file of its own")
        if entry[KEY] == b"location":
            found.add(entry[VALUE].decode())
    return found


def _byte_fields(content: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field of a message that is bytes, text or a message itself."""
    while position < end:
        tag, position = _varint(content, position)
        if not 8 <= tag < 1 << 32:
            raise ValueError(f"field {tag >> 3} at byte {position}")
        wire, length = tag & 7, 0
        if wire == VARINT:
            _, position = _varint(content, position)
        elif wire == BYTES:
            length, position = _varint(content, position)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + length > end:
            raise ValueError(f"a field ends behind byte {end}")
        if wire == BYTES:
            yield tag >> 3, position, position + length
        position += length


def _varint(content: mmap.mmap, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a number of more than ten bytes at byte {position}")
