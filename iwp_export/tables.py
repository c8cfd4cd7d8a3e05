"""How the command line writes sizes and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

UNITS = ("KiB", "MiB", "GiB", "TiB")


def human_bytes(count: float) -> str:
    """A size with its unit: 1536 -> `1.5 KiB`."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in UNITS:
        count /= 1024
        if count < 1024 or unit == UNITS[-1]:
            break
    return f"{count:.1f} {unit}"


def pairs(rows: Iterable[tuple[str, object]], indent: str = "") -> str:
    """Lines of `name  value`, the values in one column."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{indent}{name:<{width}}  {value}".rstrip() for name, value in rows)


def table(rows: Sequence[Sequence[object]], indent: str = "") -> str:
    """Lines of columns, each as wide as its widest cell."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join((indent + line).rstrip() for line in lines)
