"""Errors that a user can mend: one line each, with what was wrong, the value and the remedy."""

from __future__ import annotations

import errno
import re


class IwpError(Exception):
    """Base of every error that the command line prints as one line, with exit code 1 and no traceback.

    Args:
        message: what was wrong, the value and the remedy, in terms of the library.
        options: names of the parameters that the remedy is about; the command line adds its own names of them.
    """

    def __init__(self, message: str = "", *, options: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.options = options


class SettingsError(IwpError, ValueError):
    """A pruning or export setting is out of its range."""


class CheckpointError(IwpError):
    """The checkpoint cannot be read or is of a kind that is not supported."""


class DataError(IwpError):
    """A file of questions cannot be read, or lacks what is asked of it."""


class OutputError(IwpError):
    """The output cannot be written where the user asked."""


class BundleError(IwpError):
    """A bundle is damaged, foreign, or newer than this version can read."""


class RecipeError(IwpError):
    """A recipe of pruning settings is damaged, foreign, newer than this version can read, or of another model."""


class ReportError(IwpError):
    """A report of a validation or a benchmark is damaged, foreign, or of another version."""


class RecordingError(IwpError):
    """A recording of a reference is damaged, foreign, newer than this version can read, or lacks what is asked."""


class RequestError(IwpError, ValueError):
    """A request to a pipeline cannot be served: wrong image count, too long a prompt, keep out of range."""


class BackendError(IwpError):
    """A runtime or compiler is missing, or did not do what was asked (a silent fallback, for example)."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is a disk or a quota without room.

    numpy's `tofile` reports a short write without the system's number, `shutil.copytree` has it in its text.
    """
    while error is not None:
        if isinstance(error, OSError):
            text = str(error)
            if error.errno in (errno.ENOSPC, errno.EDQUOT) or f"[Errno {errno.ENOSPC}]" in text:
                return True
            if error.errno is None and re.fullmatch(r"\d+ requested and \d+ written", text):
                return True
        error = error.__cause__ or error.__context__
    return False


def in_one_line(error: BaseException) -> str:
    """What an error says, without line breaks; its type's name if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def os_reason(error: OSError) -> str:
    """Why the system refused, in words."""
    return "the disk is full" if is_disk_full(error) else error.strerror or str(error)
