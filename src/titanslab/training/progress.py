"""A progress bar for reading and tokenising a corpus."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from titanslab.data.tokens import Progress


@contextmanager
def reading_progress(title: str) -> Iterator[Progress]:
    """A function of (bytes done, bytes in all or None) that shows a bar with time left on a terminal."""
    if not sys.stderr.isatty():
        yield _ignore
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _ignore(done: int, total: int | None) -> None:
    """Nobody watches."""
