"""Bundles on disk: written aside and moved into place whole, verified when opened."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal, get_args

from iwp_export.bundle.manifest import FORMAT, FileEntry, Manifest
from iwp_export.bundle.place import fsync_folder, lock_folder, move_into_place
from iwp_export.errors import BundleError, OutputError
from iwp_export.progress import progress

Verify = Literal["quick", "full"]

MANIFEST = "manifest.json"
QUICK_HASH_LIMIT = 64 << 20
"""Bytes up to which a quick verification hashes a file; of larger ones it checks the size."""
READ_SIZE = 4 << 20
STAGING = re.compile(r"\..+\.partial-\d+-[0-9a-f]+")


class BundleWriter:
    """Context manager that builds a bundle in a staging folder beside its target.

    Write the files into `folder`, then call `commit`. Until then nothing exists at the target, and leaving the block
    without a commit removes the staging folder. A killed process leaves a staging folder only: `Bundle.open` refuses
    its name, and the next export to the same target clears it.

    Args:
        path: the bundle's folder; missing parents are made.
        force: replace a bundle, or an empty folder, that is there already. The old one goes when the new is complete.

    Raises:
        OutputError: the target exists and `force` is off, or it is something that `force` must not delete.
    """

    def __init__(self, path: Path | str, force: bool = False) -> None:
        self.path = Path(path)
        self._force = force
        self._target = self.path.resolve()  # a link stays a link: what it points to is replaced
        self._folder: Path | None = None
        self._lock: int | None = None
        self._check_target()

    @property
    def folder(self) -> Path:
        """The staging folder."""
        if self._folder is None:
            raise RuntimeError("a BundleWriter has a folder only inside its with block")
        return self._folder

    def __enter__(self) -> BundleWriter:
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._clear_stale()
            self._make_folder()
        except OSError as error:
            raise OutputError(f"Cannot write {self.path}: {error.strerror or error}. Choose another -o") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
        self._folder = self._lock = None

    def commit(self, manifest: Manifest) -> Manifest:
        """Hash every file, write the manifest last, and move the folder to the target in one rename.

        Args:
            manifest: the manifest; its `files` are replaced by what is in the folder.

        Returns:
            The manifest as written.

        Raises:
            OutputError: a file that the manifest names is missing, the target changed meanwhile, or the disk is full.
        """
        try:
            names = sorted(_file_names(self.folder))
            if links := [name for name in names if (self.folder / name).is_symlink()]:
                raise OutputError(
                    f"Cannot write {self.path}: {links[0]} is a link, and a bundle holds its files itself"
                )
            entries = _hash_files(self.folder, names, "Hashing the bundle", sync=True)
            manifest = replace(manifest, files=entries)
            if problem := _inconsistency(manifest):
                raise OutputError(f"Cannot write {self.path}: {problem}")
            text = json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False)
            with (self.folder / MANIFEST).open("w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            for folder in {(self.folder / name).parent for name in names} | {self.folder}:
                fsync_folder(folder)
            self._check_target()
            move_into_place(self.folder, self._target)
        except OSError as error:
            raise OutputError(f"Cannot write {self.path}: {error.strerror or error}") from error
        return manifest

    def _check_target(self) -> None:
        if STAGING.fullmatch(self._target.name):
            raise OutputError(f"Cannot write {self.path}: names like this are kept for unfinished bundles")
        if not self._target.exists():
            return
        if not self._force:
            raise OutputError(
                f"Cannot write {self.path}: it already exists. Remove it, choose another -o, or pass --force"
            )
        if foreign := _foreign_content(self._target):
            raise OutputError(f"Cannot replace {self.path}: {foreign}. Remove it yourself or choose another -o")

    def _make_folder(self) -> None:
        while True:
            name = f".{self._target.name}.partial-{os.getpid()}-{secrets.token_hex(4)}"
            folder = self._target.with_name(name)
            folder.mkdir()
            self._lock = lock_folder(folder)
            if folder.exists():  # else another export took it for a stale one before the lock was held
                self._folder = folder
                return
            if self._lock is not None:
                os.close(self._lock)

    def _clear_stale(self) -> None:
        """Remove this target's staging folders whose writers are dead: theirs are the locks that can be taken."""
        for folder in self._target.parent.glob(f".{_glob_escape(self._target.name)}.partial-*"):
            if STAGING.fullmatch(folder.name) and (lock := lock_folder(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest. Use `Bundle.open`."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str, verify: Verify = "quick") -> Bundle:
        """Read a bundle's manifest and check its files against it.

        Args:
            path: the bundle's folder.
            verify: `quick` checks that all files are there with their sizes, and hashes those up to 64 MiB; `full`
                hashes all of them.

        Raises:
            BundleError: not a bundle, from a newer version, damaged, or with missing, extra or changed files.
        """
        if verify not in get_args(Verify):
            raise ValueError(f"verify must be one of {', '.join(get_args(Verify))}, got {verify!r}")
        folder = Path(path)
        try:
            manifest = _read_manifest(folder)
            if problem := _inconsistency(manifest) or _difference(folder, manifest.files, verify):
                raise BundleError(f"{folder} is damaged: {problem}. Copy or export it again")
        except OSError as error:
            raise BundleError(f"{folder} cannot be read: {error.strerror or error} ({error.filename})") from error
        return cls(folder.resolve(), manifest)

    def path(self, name: str) -> Path:
        """Path of a file of the bundle, or of a folder in it, by its name in the manifest.

        Raises:
            BundleError: the bundle has nothing of that name.
        """
        files = self.manifest.files
        if name not in files and not any(file.startswith(f"{name}/") for file in files):
            raise BundleError(f"{self.folder} has no file {name}; it has {', '.join(sorted(files))}")
        return self.folder / name


def _read_manifest(folder: Path) -> Manifest:
    if STAGING.fullmatch(folder.resolve().name):
        raise BundleError(f"{folder} is an unfinished bundle, left by an export that was interrupted: export it again")
    if not folder.exists():
        raise BundleError(f"{folder} does not exist")
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file, not a bundle: a bundle is the folder that an export wrote")
    file = folder / MANIFEST
    if not file.is_file():
        raise BundleError(f"{folder} is not an iwp-export bundle: it has no {MANIFEST}")
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{folder} is damaged: its {MANIFEST} is not JSON ({error}); export it again") from error
    return Manifest.from_dict(data, str(folder))


def _inconsistency(manifest: Manifest) -> str:
    """What in the manifest itself is wrong, or an empty string."""
    for name in manifest.files:
        if not _is_safe(name):
            return f"its manifest names a file outside of the bundle, {name!r}"
    for role in ("decoder", "vision"):
        if role not in manifest.graphs:
            return f"it has no {role} graph"
    for role, graph in manifest.graphs.items():
        for name in (graph.file, graph.weights):
            if name not in manifest.files:
                return f"the {role} graph's file {name!r} is missing"
    if not any(name.startswith(f"{manifest.processor}/") for name in manifest.files):
        return f"the processor folder {manifest.processor!r} is missing or empty"
    return ""


def _difference(folder: Path, files: Mapping[str, FileEntry], verify: Verify) -> str:
    """How the folder differs from the manifest's list, by its first difference, or an empty string."""
    present = set(_file_names(folder)) - {MANIFEST}
    for name, entry in files.items():
        if name not in present:
            return f"{name} is missing"
        size = (folder / name).stat().st_size
        if size != entry.bytes:
            return f"{name} has {size:,} bytes, not {entry.bytes:,}"
    if extra := sorted(present - files.keys()):
        return f"{extra[0]} does not belong to it"
    names = [name for name, entry in files.items() if verify == "full" or entry.bytes <= QUICK_HASH_LIMIT]
    found = _hash_files(folder, names, "Verifying the bundle")
    changed = [name for name in names if found[name].sha256 != files[name].sha256]
    return f"the content of {changed[0]} changed (its SHA-256 differs)" if changed else ""


def _foreign_content(target: Path) -> str:
    """Why `target` must not be deleted in favour of a new bundle, or an empty string if it may."""
    if not target.is_dir():
        return "it is a file, not a bundle"
    if not any(target.iterdir()):
        return ""
    try:
        data: Any = json.loads((target / MANIFEST).read_bytes())
        if data["format"] != FORMAT:
            raise ValueError("another format")
        known = {MANIFEST, *data["files"]}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return "it is a folder that is not a bundle"
    extra = sorted(set(_file_names(target)) - known)
    return f"it holds {extra[0]}, which is not part of the bundle" if extra else ""


def _file_names(folder: Path) -> Iterator[str]:
    """Names of the files below `folder`, with slashes. Hidden ones are left out: file managers and Git leave those."""
    for file in folder.rglob("*"):
        name = file.relative_to(folder)
        if not file.is_dir() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix()


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    plain = path.as_posix() == name and not path.is_absolute() and not re.search(r"[\\:\0]", name)
    return plain and not any(part.startswith(".") for part in path.parts) and name not in ("", MANIFEST)


def _hash_files(folder: Path, names: list[str], title: str, sync: bool = False) -> dict[str, FileEntry]:
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


def _glob_escape(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)
