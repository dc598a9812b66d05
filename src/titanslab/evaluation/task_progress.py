"""A bar of tokens read, with time left, for the evaluation of a task."""

import sys
import time
from types import TracebackType
from typing import Any

SECONDS_BETWEEN_LINES = 10.0


class TaskProgress:
    """Shows on stderr what `run_cells` tells it: a bar on a terminal, elsewhere a line every ten seconds."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns: list[Any] = [
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,}/{task.total:,} tokens"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]
        self._shown = sys.stderr.isatty()
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not self._shown, transient=True)
        self._task = self._bar.add_task("", total=1, rate="", start=False)
        self._cell, self._done, self._total = "", 0, 1
        self._begun = self._last = time.perf_counter()

    def start(self, total_tokens: int) -> None:
        """Begin, with so many tokens to read."""
        self._total = max(1, total_tokens)
        self._bar.reset(self._task, total=self._total)
        self._begun = self._last = time.perf_counter()

    def cell(self, text: str) -> None:
        """Name what is being read."""
        self._cell = text
        self._bar.update(self._task, description=text)

    def advance(self, tokens: int) -> None:
        """So many more have been read."""
        self._done += tokens
        now = time.perf_counter()
        rate = self._done / max(now - self._begun, 1e-9)
        self._bar.update(self._task, completed=self._done, rate=f"{rate:,.0f}/s")
        if not self._shown and self._done and now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            left = (self._total - self._done) / rate
            line = f"{self._cell}: {self._done:,} of {self._total:,} tokens, {rate:,.0f}/s, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> "TaskProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
