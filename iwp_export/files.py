"""Where files are kept that can be made again."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iwp_export.errors import is_disk_full, os_reason


def cache_folder() -> Path:
    """`iwp-export` in XDG_CACHE_HOME, or in ~/.cache; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iwp-export"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends well: other processes see a whole file or none.

    Raises:
        OSError: the folder cannot be made or written; of a full disk the message says so and names `path`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".iwp-export-", dir=path.parent) as folder:
            written = Path(folder) / path.name
            yield written
            written.replace(path)
    except OSError as error:
        if is_disk_full(error):
            raise OSError(errno.ENOSPC, os_reason(error), str(path)) from error
        raise
