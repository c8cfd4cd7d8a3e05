"""Where a machine's state is read from: a tree of files and the output of programs, both of which a test can give."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from iwp_export.device.machine import run_tool

TEXT_LIMIT = 1 << 20
"""Bytes read of one file; those of sysfs and procfs have a few."""

GREATEST = 2**64 - 1

Runner = Callable[[Sequence[str]], tuple[str, str]]
"""Runs a program: its output, and why there is none."""


@dataclass(frozen=True)
class Probe:
    """Reads a machine. What cannot be read is None, whatever the reason.

    Attributes:
        root: the folder that stands for `/`.
        run: runs a program.
    """

    root: Path = Path("/")
    run: Runner = run_tool

    @property
    def is_this_machine(self) -> bool:
        """Whether libraries of this machine may be asked too."""
        return self.root == Path("/") and self.run is run_tool

    def path(self, name: str | Path) -> Path:
        """A file by its absolute name, or one that `find` gave."""
        path = Path(name)
        return path if path.is_relative_to(self.root) else self.root / str(name).lstrip("/")

    def find(self, pattern: str) -> list[Path]:
        """Files and folders by an absolute pattern, in the order of their names, numbers as numbers."""
        try:
            return sorted(self.root.glob(pattern.lstrip("/")), key=lambda path: _natural(str(path)))
        except OSError:
            return []

    def text(self, name: str | Path) -> str | None:
        """A file's text, as `read_text` gives it."""
        try:
            return read_text(self.path(name))
        except OSError:
            return None

    def number(self, name: str | Path) -> int | None:
        """The whole number that a file holds, of 64 bits as the kernel's are."""
        try:
            value = int(self.text(name) or "")
        except ValueError:
            return None
        return value if abs(value) <= GREATEST else None

    def output(self, *command: str) -> str | None:
        """What a program prints; None if it is not here, fails or prints nothing."""
        return self.run(command)[0].strip() or None


def read_text(path: Path) -> str:
    """A file's text without the space around it, and without the zero that ends strings of the device tree.

    Raises:
        OSError: it cannot be read. Some sensors of a chip that is switched off answer EAGAIN, which Python's buffered
            files take for a missing line.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(descriptor, TEXT_LIMIT):
            parts.append(part)
            if sum(map(len, parts)) >= TEXT_LIMIT:
                break
    finally:
        os.close(descriptor)
    return b"".join(parts).decode(errors="replace").strip("\0 \t\r\n")


def _natural(name: str) -> list[tuple[int, str]]:
    """A key for sorting by which zone10 comes after zone2."""
    parts: list[tuple[int, str]] = []
    digits = ""
    for letter in name + "\0":
        if letter.isdigit():
            digits += letter
            continue
        if digits:
            parts.append((int(digits), ""))
            digits = ""
        parts.append((-1, letter))
    return parts
