"""Progress bars of long steps, on stderr, silent where nobody watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(title: str, total: float | None = None, *, unit: str = "") -> Iterator[Callable[[float], None]]:
    """Show a bar while the block runs; call the yielded function with the amount done since the last call.

    Args:
        title: what the step does.
        total: amount of work, or None for a step whose length is unknown.
        unit: `bytes` shows sizes and a rate; anything else shows a percentage. Where the total is known, the bar also
            shows the time left.
    """
    if not sys.stderr.isatty():
        yield lambda amount: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount_columns = [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [TaskProgressColumn()]
    left = [TextColumn("left"), TimeRemainingColumn()] if total is not None else []
    times = [TimeElapsedColumn(), *left]
    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), *amount_columns, *times]
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=total)
        yield lambda amount: bars.advance(task, amount)
        bars.update(task, total=total or 1, completed=total or 1)
