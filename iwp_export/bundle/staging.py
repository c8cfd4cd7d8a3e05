"""Writing whole or not at all: a locked folder beside the target, forced to the disk, then moved into place."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from iwp_export.errors import IwpError, OutputError, is_disk_full, os_reason

STAGING = re.compile(r"\..+\.partial-\d+-[0-9a-f]+")
AT_FDCWD = -100
RENAME_EXCHANGE = 2
"""Constants of Linux's renameat2(2), which swaps two paths in one step."""

Self = TypeVar("Self", bound="Staging")


class Staging:
    """Context manager with a folder beside a target, in which the target's content is made.

    Entering makes missing parents, and removes the folders that killed writers of the same target left; those of
    running writers are locked. Leaving removes the folder. A killed process leaves this folder only.

    Args:
        target: what will be written; the folder's name is made from its name.
        shown: the target's name in errors.

    Raises:
        OutputError: on entering, the folder cannot be made; on leaving, what happened inside was a full disk.
    """

    def __init__(self, target: Path, shown: Path) -> None:
        self._target, self._shown = target, shown
        self._folder: Path | None = None
        self._lock: int | None = None

    @property
    def folder(self) -> Path:
        """The staging folder."""
        if self._folder is None:
            raise RuntimeError("a writer has a folder only inside its with block")
        return self._folder

    def __enter__(self: Self) -> Self:
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._clear_stale()
            self._make_folder()
        except OSError as error:
            raise OutputError(
                f"Cannot write {self._shown}: {os_reason(error)}. Choose another output", options=("output",)
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
        self._folder = self._lock = None
        if isinstance(error, Exception) and not isinstance(error, IwpError) and is_disk_full(error):
            raise OutputError(f"Cannot write {self._shown}: the disk is full") from error

    def seal(self, name: str, text: str, files: Sequence[str]) -> None:
        """Write the last file, which describes the others, and force it and every folder to the disk.

        Raises:
            OSError: it cannot be written.
        """
        with (self.folder / name).open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        for folder in {(self.folder / file).parent for file in files} | {self.folder}:
            fsync_folder(folder)

    def siblings(self) -> Iterator[Path]:
        """The staging folders of this target: this one, those of running writers and what killed ones left."""
        for folder in self._target.parent.glob(f".{glob.escape(self._target.name)}.partial-*"):
            if STAGING.fullmatch(folder.name):
                yield folder

    def _make_folder(self) -> None:
        while True:
            name = f".{self._target.name}.partial-{os.getpid()}-{secrets.token_hex(4)}"
            folder = self._target.with_name(name)
            folder.mkdir()
            self._lock = lock_folder(folder)
            if folder.exists():  # else another writer took it for a stale one before the lock was held
                self._folder = folder
                return
            if self._lock is not None:
                os.close(self._lock)

    def _clear_stale(self) -> None:
        for folder in self.siblings():
            if (lock := lock_folder(folder)) is not None:  # its writer is dead
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def lock_folder(folder: Path) -> int | None:
    """Lock a folder until the returned descriptor is closed or the process dies.

    Returns:
        The descriptor, or None: another process holds the lock, or this system cannot lock folders.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def fsync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, where the system can."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_into_place(moves: Sequence[tuple[Path, Path]]) -> None:
    """Move each source to its target, in order. Where a target exists, the two change places.

    One move is atomic on Linux. Between several, a killed process leaves some done; an error takes them back.

    Raises:
        OSError: a move failed; every target is as it was.
    """
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            _move(source, target)
            done.append((source, target))
        for folder in {target.parent for _, target in moves}:
            fsync_folder(folder)
    except BaseException:
        for source, target in reversed(done):
            _move(target, source)
        raise


def _move(source: Path, target: Path) -> None:
    if not target.exists():
        source.rename(target)
    elif not _exchange(source, target):
        # No atomic swap here: between the two renames the old content is found under the name `replaced`.
        replaced = target.with_name(f".{target.name}.replaced-{secrets.token_hex(4)}")
        target.rename(replaced)
        try:
            source.rename(target)
        except BaseException:
            replaced.rename(target)
            raise
        replaced.rename(source)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths atomically; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    rename.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))
