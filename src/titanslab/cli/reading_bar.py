"""How far a reading is: tokens, tokens per second, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from titanslab.progress import SECONDS_BETWEEN_LINES

if TYPE_CHECKING:
    from titanslab.reading.text import ReadProgress


@contextmanager
def reading_bar(title: str) -> Iterator[Callable[[ReadProgress], None]]:
    """A function that shows a `ReadProgress` on stderr: a bar on a terminal, else a line every ten seconds."""
    if not sys.stderr.isatty():
        yield _lines(title)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[pace]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, pace="")

        def show(progress: ReadProgress) -> None:
            bar.update(task, completed=progress.bytes, total=progress.total_bytes, pace=_pace(progress))

        yield show


def _pace(progress: ReadProgress) -> str:
    return f"{progress.tokens:,} tokens, {progress.tokens_per_second:,.0f} tokens/s"


def _lines(title: str) -> Callable[[ReadProgress], None]:
    last = time.perf_counter()

    def show(progress: ReadProgress) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = f"{progress.seconds_left:.0f} s left"
            print(f"{title}: {_pace(progress)}, {left}", file=sys.stderr, flush=True)

    return show
