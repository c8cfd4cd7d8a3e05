"""Folders on disk: locked by their writer, forced to the disk, and moved into place in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import sys
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2
"""Constants of Linux's renameat2(2), which swaps two paths in one step."""


def lock_folder(folder: Path) -> int | None:
    """Lock a folder until the returned descriptor is closed or the process dies.

    Returns:
        The descriptor, or None: another process holds the lock, or this system cannot lock folders.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
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


def move_into_place(source: Path, target: Path) -> None:
    """Rename `source` to `target`. If `target` exists, the two change places, so `source` is then the old one.

    Raises:
        OSError: the rename failed; `target` is as it was.
    """
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
    fsync_folder(target.parent)


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
