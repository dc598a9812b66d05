"""A bar of tokens read, with time left, for the evaluation of a task."""

import sys
from types import TracebackType
from typing import Any


class TaskProgress:
    """Shows on the terminal what `run_cells` tells it; silent elsewhere."""

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
        shown = sys.stderr.isatty()
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True)
        self._task = self._bar.add_task("", total=1, rate="", start=False)

    def start(self, total_tokens: int) -> None:
        """Begin, with so many tokens to read."""
        self._bar.reset(self._task, total=max(1, total_tokens))

    def cell(self, text: str) -> None:
        """Name what is being read."""
        self._bar.update(self._task, description=text)

    def advance(self, tokens: int) -> None:
        """So many more have been read."""
        self._bar.update(self._task, advance=tokens)
        speed = self._bar.tasks[0].speed
        if speed:
            self._bar.update(self._task, rate=f"{speed:,.0f}/s")

    def __enter__(self) -> "TaskProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
