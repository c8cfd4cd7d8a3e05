"""The file that keeps a calibration's scores for a second start: a line for the header, then one for each score."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from iwp_export.bundle.outputs import check_output
from iwp_export.bundle.schema import Flaw, Number, Rule, from_json, to_json
from iwp_export.errors import OutputError, os_reason
from iwp_export.pruning.settings import PruningSettings

FORMAT = "iwp-journal"

Nats = Annotated[float, Rule(lambda value: value >= 0, "a number of 0 or more")]
Probability = Annotated[float, Rule(lambda value: 0 <= value <= 1, "a number from 0 to 1")]


@dataclass(frozen=True)
class Entry:
    """One setting on one sample; see `scorer.Score`. The last two are the unpruned model's.

    Attributes:
        confidence: mean probability of its answer's tokens.
        unpruned_right: whether it is right; None is not known.
    """

    sample: Number
    settings: PruningSettings
    kl: Nats
    agrees: bool
    right: bool | None
    confidence: Probability
    unpruned_right: bool | None


class Journal:
    """Takes over what earlier starts wrote under the same header, and writes each further score as it is made.

    A line is sealed with a digest: one that is torn, or was changed, is measured again.

    Args:
        path: the file.
        header: what scores depend on beside sample and setting.
        samples: how many there are; an entry of another one is left out.
        force: write anew where the file has another header, or is no journal.

    Attributes:
        entries: what earlier starts measured.

    Raises:
        OutputError: the file cannot be written, is a link or a part of an artefact, or without `force` is of another
            calibration or no journal.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], samples: int, force: bool = False) -> None:
        self._path = path
        check_output(path, force=True)
        first = json.dumps({"format": FORMAT, **header}, sort_keys=True).encode() + b"\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
            self._file.seek(0)
            content = self._file.read()
            known = content.startswith(first)
            if not known and not first.startswith(content) and not force:  # a torn header is one that begins so
                self._file.close()
                raise OutputError(_foreign(path, content), options=("force",))
            # A torn line has no end.
            self._file.truncate(content.rfind(b"\n") + 1 if known else 0)
            if not known:
                self._file.write(first)
        except OSError as error:
            raise self._error(error) from error
        found = (_entry(line) for line in content[len(first) :].split(b"\n")[:-1]) if known else ()
        self.entries = [entry for entry in found if entry is not None and entry.sample < samples]

    def add(self, entry: Entry) -> None:
        """Write a line.

        Raises:
            OutputError: it cannot be written.
        """
        body = to_json(entry)
        line = json.dumps({"digest": _digest(body), **body}).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise self._error(error) from error

    def close(self, finished: bool) -> None:
        """Close the file; a finished one is removed."""
        self._file.close()
        if finished:
            self._path.unlink(missing_ok=True)

    def _error(self, error: OSError) -> OutputError:
        return OutputError(f"cannot keep scores in {self._path}: {os_reason(error)}", options=("output",))


def _entry(line: bytes) -> Entry | None:
    """A line's entry; None if it is damaged."""
    try:
        body = json.loads(line)
        if body.pop("digest") != _digest(body):
            return None
        found: Entry = from_json(Entry, body, "")
        return found
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, Flaw):
        return None


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def _foreign(path: Path, content: bytes) -> str:
    """Why a file is not taken over."""
    try:
        is_journal = json.loads(content.split(b"\n")[0])["format"] == FORMAT
    except (ValueError, LookupError, TypeError, RecursionError):
        is_journal = False
    if not is_journal:
        return f"{path} would keep the scores, but is another file. Remove it, choose another output, or replace it"
    return (
        f"{path} holds scores of another calibration (of another model, data, settings or version). Finish that one, "
        "remove the file, or replace it"
    )
