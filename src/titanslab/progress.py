"""The one progress bar of the commands, and the type of the function that work is reported to."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

SECONDS_BETWEEN_LINES = 10.0


class Progress(Protocol):
    """Called while work goes on.

    Args:
        done: amount of work done so far.
        total: amount of work in all, in the same unit; None where it is not known.
        note: a short text about the work just done; None keeps the text of the call before.
    """

    def __call__(self, done: float, total: float | None, note: str | None = None, /) -> None: ...


@contextmanager
def bar(
    title: str,
    unit: str = "",
    *,
    start: float | None = 0.0,
    every: float | None = SECONDS_BETWEEN_LINES,
    keep: bool = False,
) -> Iterator[Progress]:
    """Show on stderr how far work is, how fast it goes and the time left: a bar on a terminal, lines elsewhere.

    Args:
        title: the name of the work; spaces at its end align the bars of several works.
        unit: of the reported amounts, such as "tokens"; "bytes" are shown in kB, MB, ...; "" shows shares alone.
        start: amount done before the bar opened; None takes the first report, as when work is resumed at a place
            that is known only then.
        every: seconds between lines without a terminal; None prints a line for each report that has a note.
        keep: leave the finished bar on the screen, and print a last line without a terminal.
    """
    if sys.stderr.isatty():
        with _on_terminal(title, _Pace(unit, start), keep) as show:
            yield show
        return
    lines = _Lines(title.strip(), _Pace(unit, start), every)
    yield lines
    if keep:
        lines.finish()


class _Pace:
    """Amounts as text, and the mean speed since the work began."""

    def __init__(self, unit: str, start: float | None) -> None:
        self.unit, self.start, self.begin = unit, start, time.perf_counter()

    def speed(self, done: float) -> float:
        """Units per second; 0 where nothing was measured yet."""
        if self.start is None:
            self.start, self.begin = done, time.perf_counter()
        return (done - self.start) / max(time.perf_counter() - self.begin, 1e-9)

    def amounts(self, done: float, total: float | None, of: str) -> list[str]:
        """The amount done `of` the total, and the speed; nothing for shares."""
        if not self.unit:
            return []
        speed = self.speed(done)
        counts = of.join(self._text(amount) for amount in (done, total) if amount is not None)
        named = counts if self.unit == "bytes" else f"{counts} {self.unit}"
        return [named, f"{self._text(speed)}/s"] if speed > 0 else [named]

    def _text(self, amount: float) -> str:
        if self.unit == "bytes":
            from rich.filesize import decimal

            return decimal(int(amount))
        return f"{amount:.2g}" if 0 < amount < 1 else f"{int(amount):,}"


@contextmanager
def _on_terminal(title: str, pace: _Pace, keep: bool) -> Iterator[Progress]:
    from rich import progress as columns
    from rich.console import Console

    display = columns.Progress(
        columns.TextColumn("{task.description}", markup=False),
        columns.BarColumn(),
        columns.TextColumn("{task.fields[amounts]}", markup=False),
        columns.TimeElapsedColumn(),
        columns.TextColumn("left"),
        columns.TimeRemainingColumn(),
        columns.TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
        transient=not keep,
    )
    with display:
        task = display.add_task(title, total=None, completed=int(pace.start or 0), amounts="", note="")

        def show(done: float, total: float | None, note: str | None = None, /) -> None:
            changes: dict[str, Any] = {} if note is None else {"note": note}
            amounts = "  ".join(pace.amounts(done, total, "/"))
            display.update(task, completed=done, total=total, amounts=amounts, **changes)

        yield show


class _Lines:
    """Prints a line now and then."""

    def __init__(self, title: str, pace: _Pace, every: float | None) -> None:
        self.title, self.pace, self.every = title, pace, every
        self.last = time.perf_counter()
        self.note = ""
        self.waiting: tuple[float, float | None] | None = None  # reported and not printed

    def __call__(self, done: float, total: float | None, note: str | None = None, /) -> None:
        self.pace.speed(done)  # the first report may be where the work began
        self.waiting = done, total
        self.note = self.note if note is None else note
        if self.every is None:
            due = note is not None
        else:
            due = done > 0 and time.perf_counter() - self.last >= self.every
        if due:
            self._print(done, total)

    def finish(self) -> None:
        """Print the last report if the work is done and it was not printed."""
        if self.waiting is not None and self.waiting[1] is not None and self.waiting[0] >= self.waiting[1]:
            self._print(*self.waiting)

    def _print(self, done: float, total: float | None) -> None:
        self.last, self.waiting = time.perf_counter(), None
        parts = [*self.pace.amounts(done, total, " of "), *([self.note] if self.note else [])]
        speed = self.pace.speed(done)
        if total is not None and speed > 0:
            parts.append(f"{duration((total - done) / speed)} left")
        print(f"{self.title}: {', '.join(parts)}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as text: "9 s", "2 min 05 s", "1 h 20 min"."""
    seconds = int(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"
